#!/bin/bash
# ray 2.60.0: a placement group that has lost a node is scheduled anew without any pause while no node has room.
#
# A new placement group that finds no room is tried again with growing delays. One whose node has died is RESCHEDULING:
# while the other nodes are full, the head's gcs_server tries its bundle more than a hundred thousand times a second,
# for as long as that lasts. placement_group_table counts the attempts, and says "highest_retry_delay_ms": 0.0.
#
# Seen, for two nodes of one CPU, a group of two bundles of one CPU, and one node killed:
#   state RESCHEDULING, 184,514 attempts a second, highest_retry_delay_ms 0.0
# Way out: leave room for a lost bundle on the other nodes, as with bundles that ask for less than a node has.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "ray==2.60.0"
cat > "$folder/group.py" <<'PROGRAM'
import sys, time

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from ray.util.placement_group import placement_group

node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
other = cluster.add_node(**node)
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
group = placement_group([{"CPU": 1}] * 2, strategy="SPREAD")
ray.get(group.ready())
cluster.remove_node(other, allow_graceful=False)
while (table := placement_group_table(group))["state"] == "CREATED":
    time.sleep(0.1)
time.sleep(1)
before, begun = placement_group_table(group)["stats"], time.perf_counter()
time.sleep(3)
after, seconds = placement_group_table(group)["stats"], time.perf_counter() - begun
rate = (after["scheduling_attempt"] - before["scheduling_attempt"]) / seconds
print(f"state {table['state']}, {rate:.0f} attempts a second, highest_retry_delay_ms {after['highest_retry_delay_ms']}")
ray.shutdown()
cluster.shutdown()
sys.exit(not (table["state"] == "RESCHEDULING" and rate > 500 and after["highest_retry_delay_ms"] == 0))
PROGRAM
"$folder/venv/bin/python" "$folder/group.py"
