"""The application of Serve: a gate, and behind it replicas, of which no two promise the same memory of a machine."""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve

from pipeline.config import Config
from pipeline.replicas.gate import Gate
from pipeline.replicas.replica import Replica
from pipeline.replicas.replica_options import AUTO, ReplicaOptions, replica_options
from pipeline.replicas.share import Machine, share_of
from pipeline.server.connections import MOST_CONNECTIONS

REPLICAS = Replica.__name__
"""The name of their deployment."""
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
QUEUES = 2
"""A replica is handed so many times the requests that share passes. The others wait there, in order, so that no pass
waits for them. Beyond that the next replica gets them, and where all have as many they wait at the gate in no order."""
HEALTH_SECONDS, HEALTH_PATIENCE_SECONDS = 2.0, 30.0
DRAIN_PERIOD_SECONDS = 1.0
OPENINGS = 3
"""How often a replica may fail to open, before Serve gives up."""


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application from the `args` of a config file of Serve, as `replica_options` reads them.

    Its import_path is `pipeline.replicas.application:app`; its deployments are `Gate` and `Replica`.
    """
    return application(replica_options(args))


def application(options: ReplicaOptions) -> serve.Application:
    """Build the application. Raises ConfigError for what can never work."""
    config = options.settings
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": options.server.drain_seconds,
        "graceful_shutdown_wait_loop_s": DRAIN_PERIOD_SECONDS,
        "logging_config": {"enable_access_log": False},  # the application tells of each request
    }
    replica = serve.deployment(
        **share_of(options, _machines()),
        **_count(options, config),
        **common,
        max_ongoing_requests=QUEUES * config.max_requests,
        max_queued_requests=max(1, config.max_waiting),
        request_router_config={"request_router_class": ROUTER},
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_PATIENCE_SECONDS,
        max_constructor_retry_count=OPENINGS,
    )(Replica)
    gate = serve.deployment(**common, max_ongoing_requests=MOST_CONNECTIONS, ray_actor_options={"num_cpus": 0})(Gate)
    return gate.bind(replica.bind(options.server), bool(options.server.api_keys))


def _count(options: ReplicaOptions, config: Config) -> dict[str, Any]:
    """How many replicas there are: a number, or as many as leave each with the requests that share its passes."""
    if options.replicas != AUTO:
        return {"num_replicas": options.replicas}
    return {"num_replicas": AUTO, "autoscaling_config": {"target_ongoing_requests": config.max_requests}}


def _machines() -> list[Machine]:
    """The machines of the cluster. Connects to it, as Ray does by itself, where the program has not."""
    if not ray.is_initialized():
        ray.init()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(cpus=int(one.get("CPU", 0)), gpus=int(one.get("GPU", 0))) for one in nodes]
