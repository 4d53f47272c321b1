"""What a run counts of its experts is what a replay of its recorded routing counts, place by place."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.routed_checkpoint import EXPERTS, LAYERS, save_experts

from pipeline import Model
from pipeline.cli import main
from pipeline.system.hub_cache import BUNDLED
from pipeline.tools.routing.recorded_routing import read_routing
from pipeline.tools.routing.recorder import Recorder
from pipeline.tools.routing.replay_routing import REPLAYED, Wants, replay_routing
from pipeline.tools.trace.expert_chart import expert_wants
from pipeline.tools.trace.recording import Recording
from pipeline.tools.trace.report import report_html


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
    async with Model.open(checkpoint, context_tokens=64, expert_cache=policy, lookahead=False, **places) as model:
        half, line = model.runtime.section.expert_half, model.runtime.expert_line
        assert half is not None
        assert line is not None
        expert_bytes = line.room.catalog.needed_bytes // line.room.count
        half.recorder = recorder = Recorder("tiny", "", LAYERS, EXPERTS, expert_bytes)
        for prompts in ([[5] * 30], [[7, 8], [9, 7], [11, 5, 6]]):
            calls = [model.generate(one, max_new_tokens=12, ignore_eos=True) for one in prompts]
            await asyncio.gather(*calls)
        counted, said = line.store.statistics().places, model.statistics()
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
    assert said.experts is not None
    assert read == int(replayed.misses[0].sum()) * expert_bytes == said.experts.bytes_read
    assert said.experts.bytes_per_token == read / said.computed_tokens
    assert [*said.experts.hits.values()] == [int(one.sum()) for one in replayed.hits]
    assert said.as_dict()["experts"]["hint_precision"] is None
    unions = np.array([[len(union) for union in unions] for unions in wants.unions])
    assert [*said.experts.wanted.values()] == unions.mean(axis=0).tolist()
    assert [*said.experts.largest.values()] == unions.max(axis=0).tolist()


@pytest.mark.anyio
async def test_a_recording_has_what_each_layer_wanted_and_found(checkpoint: Path) -> None:
    settings = {"device": "cpu-copy", "gpu_experts": 5, "host_experts": 9}
    async with Model.open(checkpoint, context_tokens=64, **settings) as model:
        async with model.recording():
            await model.generate([5, 6, 7], max_new_tokens=9, ignore_eos=True)
            recording = Recording.of(model.runtime, "test")
        said = model.statistics().experts
    assert said is not None
    wants = expert_wants(recording)
    assert [one.layer for one in wants] == [*LAYERS] * 9
    assert sum(one.found for one in wants) == said.hits["expert device"]
    assert sum(one.read for one in wants) == said.misses["expert host"]
    assert sum(one.wanted for one in wants) == said.hits["expert device"] + said.misses["expert device"]
    assert "<h2>Experts</h2>" in report_html(recording)


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
