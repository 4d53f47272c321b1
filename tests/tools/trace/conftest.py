"""Recordings of simulated runs."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.engine.actor_names import KV_ACTORS
from pipeline.engine.policies import POLICIES
from pipeline.tools.simulation.sim_line import simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.recording import Recording

ACTORS = ["prefetch_planner", "disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"]
ANALYSIS = {"attn": 0.08, "ffn": 0.12, "attn_io": 0.1, "ffn_io": 0.1}
Record = Callable[..., Recording]


@pytest.fixture
def record() -> Record:
    """Run a policy on virtual time; the timings are those of the analysis, but for those that are given."""

    def run(policy: str = "backpressure", *, passes: int = 2, gpu_groups: int = 10, **timings: Any) -> Recording:
        result = simulate(
            LayerTimings(**({"layers": 4} | ANALYSIS | timings)), POLICIES[policy], passes=passes, gpu_groups=gpu_groups
        )
        actors = [*ACTORS, *(KV_ACTORS if "kv_seconds" in timings else ())]
        configuration = {"command": "simulate", "policy": policy, "actors": actors, "settings": {"passes": passes}}
        return Recording(tuple(result.trace.spans), tuple(result.trace.counts), configuration)

    return run
