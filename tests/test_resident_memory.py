"""What a process really takes, against the plan that it printed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cases import EVERYTHING

ROOT = Path(__file__).parent.parent
RUN = """
import asyncio, json, sys
from pathlib import Path
from pipeline import Model

async def main(requests, new_tokens, settings):
    async with Model.open(**settings) as model:
        size = model.runtime.config.vocabulary_size
        prompts = [[(7 * index + place) % size for place in range(1 + index % 40)] for index in range(requests)]
        await asyncio.gather(*(model.generate(p, max_new_tokens=new_tokens, ignore_eos=True) for p in prompts))
        plan = model.runtime.plan
        places = [place.name for place in model.runtime.device.places[1:]]
        planned = sum(plan.need(place) for place in ["host", *places])
    # Not ru_maxrss, which a child inherits from the process that started it.
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps([planned, int(fields["VmHWM"].split()[0]) * 1024]))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("requests", "new_tokens", "settings"),
    [
        (1, 32, {}),
        *([(64, 8, {"context_tokens": 128, "kv_tokens": 8192})] if EVERYTHING else []),  # as on cpu-copy
        (64, 8, {"context_tokens": 128, "kv_tokens": 8192, "device": "cpu-copy"}),
        (1, 8, {"gpu_groups": 24, "host_groups": 24, "device": "cpu-copy"}),
        (8, 30, {"context_tokens": 1024, "kv_tokens": 60_000, "host_memory": "420MB", "kv_disk": True}),
    ],
    ids=str,
)
def test_the_peak_stays_within_the_printed_plan(
    requests: int, new_tokens: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    if "kv_disk" in settings:
        settings = {**settings, "kv_disk": str(tmp_path)}
    command = [sys.executable, "-c", RUN, json.dumps([requests, new_tokens, settings])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    planned, peak = json.loads(result.stdout)
    assert peak <= 1.05 * planned
