"""What a run counts of its experts is what a replay of its recorded routing counts, place by place."""

import asyncio
from pathlib import Path

import pytest
from support.routed_checkpoint import EXPERTS, LAYERS, save_experts

from pipeline import Model
from pipeline.cli import main
from pipeline.system.hub_cache import BUNDLED
from pipeline.tools.routing.recorded_routing import read_routing
from pipeline.tools.routing.recorder import Recorder
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_experts(tmp_path_factory.mktemp("experts"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("slots", "policy"), [((9,), "lru"), ((4,), "lfu"), ((21,), "lru"), ((11, 5), "lru"), ((3, 8), "lfu")], ids=str
)
async def test_a_run_reads_what_a_replay_reads(checkpoint: Path, slots: tuple[int, ...], policy: str) -> None:
    places = {"device": "cpu", "gpu_experts": slots[-1]}
    if len(slots) > 1:
        places = {"device": "cpu-copy", "gpu_experts": slots[-1], "host_experts": slots[0]}
    async with Model.open(checkpoint, context_tokens=64, expert_cache=policy, **places) as model:
        half, line = model.runtime.program.expert_half, model.runtime.expert_line
        assert half is not None
        assert line is not None
        expert_bytes = line.room.catalog.needed_bytes // line.room.count
        half.recorder = recorder = Recorder("tiny", "", LAYERS, EXPERTS, expert_bytes)
        for prompts in ([[5] * 30], [[7, 8], [9, 7], [11, 5, 6]]):
            calls = [model.generate(one, max_new_tokens=12, ignore_eos=True) for one in prompts]
            await asyncio.gather(*calls)
        counted = line.store.statistics().places
        source = model.runtime.source
        read = source.bytes_needed - source.rows.bytes_needed - model.runtime.catalog.needed_bytes
    wants = Wants.of(recorder.recorded())
    replayed = replay_routing(wants, slots, REPLAYED[policy])
    assert wants.tokens == 4 * 11
    assert 0 < wants.streamed.mean() < 1
    for place, uses in enumerate(counted.values()):
        for column, layer in enumerate(LAYERS):
            counts = [int(one[place][:, column].sum()) for one in (replayed.hits, replayed.misses)]
            assert counts == [
                uses[layer].hits + uses[layer].streamed_hits,
                uses[layer].misses + uses[layer].streamed_misses,
            ]
    assert read == int(replayed.misses[0].sum()) * expert_bytes


def test_the_command_writes_what_was_chosen(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["trace-routing", str(checkpoint), "--prompt-ids", "5,6,7,8", "--max-new-tokens", "9", "--ignore-eos"]
    assert main([*command, "-o", str(tmp_path / "routing"), "--device", "cpu", "--context-tokens", "64"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.split()) == 9
    assert "8 decoded tokens and 4 of the prompt, 3 layers" in printed.err
    routing = read_routing(tmp_path / "routing")
    assert (routing.rows.tolist(), routing.model.layers, routing.model.experts) == ([4] + [1] * 8, LAYERS, EXPERTS)
    assert len(routing.model.digest) == 64


def test_a_model_without_experts_has_no_routing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["trace-routing", str(BUNDLED), "--prompt", "def", "--max-new-tokens", "1", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "routing")]) == 1
    assert "has no experts that a router chooses" in capsys.readouterr().err
    assert not (tmp_path / "routing").exists()
