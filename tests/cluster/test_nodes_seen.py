"""What is said of a model on a cluster, where no line and no device is in this process."""

import time
from typing import Any

import pytest
from support.local_sections import open_here
from support.servers import Serving, serving

from pipeline import Model
from pipeline.server.line_frame import Moment, line_frame
from pipeline.system.hub_cache import BUNDLED
from pipeline.tools.commands.run_lines import closing_lines, opening_lines
from pipeline.tools.commands.run_prompt import _where

PROMPT = (1, 2, 3, 4)
MOVES: dict[str, Any] = {"device": "cpu-copy", "residency": False, "gpu_groups": 2, "host_groups": 2}


async def served(model: Model, client: Serving) -> dict[str, Any]:
    """What a server with this model says of it; the model is closed by its test."""
    client.served.opened = model
    try:
        metrics = (await client.client.get("/metrics")).text
        return {"metrics": metrics, "props": (await client.client.get("/props")).json()}
    finally:
        client.served.opened = None


@pytest.mark.parametrize("nodes", [1, 2])
async def test_nodes_are_seen_by_run_server_and_page(nodes: int) -> None:
    async with serving(opened=False, names=("small",)) as it, await open_here(BUNDLED, count=nodes, **MOVES) as model:
        opening, before = opening_lines(model), Moment(time.perf_counter(), model.statistics())
        await model.generate(PROMPT, max_new_tokens=3, ignore_eos=True)
        now = Moment(time.perf_counter(), model.statistics())
        said = await served(model, it)
        assert _where(model, now.counted) == "pass 4"
    sections = now.counted.sections
    assert [one.node for one in sections] == [f"here {number}" for number in range(nodes)]
    assert all(one.waited_seconds > 0 for one in sections)
    assert opening.count("plan       ") == nodes
    assert "computes in bfloat16 on cpu" in opening
    closing = closing_lines(before.counted, now.counted, 1.0)
    frame = line_frame(before, now)
    assert frame["tokens_per_second"] > 0
    assert [row["node"] for row in said["props"]["sections"]] == [one.node for one in sections]
    for number, one in enumerate(sections):
        assert f"section {number}  here {number} · cpu · {len(one.layers)} layers" in closing
        assert f'penstock:budget_bytes{{place="host",section="{number}"}}' in said["metrics"]
        assert f'penstock:queue_depth{{queue="disk_reader",section="{number}"}}' in said["metrics"]
    labels = [row["label"] for row in frame["sections"]]
    assert labels == ([] if nodes == 1 else [f"{one.number} · {one}" for one in sections])
