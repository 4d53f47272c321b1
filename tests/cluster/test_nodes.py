"""A model cut over nodes says what it says on one device, bit for bit; the nodes are in one process here."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING, in_turn
from support.family_checkpoints import family_checkpoint
from support.family_models import CASES
from support.local_sections import LocalSections, open_here

from actors.core.budget import Slot
from actors.core.event import Event
from actors.core.message import READY, Message
from actors.core.stage import Stage
from pipeline import Config, Model, Output
from pipeline.cluster.section_calls import Survey
from pipeline.cluster.surveys import check_alike, survey
from pipeline.errors import ConfigError, RequestError
from pipeline.generation.batching import Piece
from pipeline.models.model_config import read_config
from pipeline.state.kv_placement import KvPlacement, place_kv

STEPS = 12 if EVERYTHING else 6
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
MOVES: dict[str, Any] = {"residency": False, "gpu_groups": 2, "max_tokens_per_pass": 29}
FEW_EXPERTS = {"gpu_experts": 3, "host_experts": 5}
WAYS: dict[str, dict[str, Any]] = {
    "2 nodes": {"count": 2, "device": "cpu"},
    "3 nodes, all moves": {"count": 3, "device": "cpu-copy", **MOVES},
}
FEW = ["gemma3", "gpt_oss", "qwen3_next", "llama_tied"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, made when it is asked for."""
    return tmp_path_factory.mktemp("families")


async def answers(model: Model) -> list[Output]:
    """Of calls that share passes: greedy, drawn, with penalties, and with log-probabilities of the prompt."""
    ways: list[dict[str, Any]] = [
        {"logprobs": tiny_models.VOCABULARY_SIZE},
        {"temperature": 1.0, "seed": 7, "top_p": 0.9, "n": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "prompt_logprobs": 3},
    ]
    asked = [
        model.generate(PROMPT[3 * at :], max_new_tokens=STEPS, ignore_eos=True, **way) for at, way in enumerate(ways)
    ]
    return [one for some in await asyncio.gather(*asked) for one in (some if isinstance(some, list) else [some])]


@functools.cache
def alone(folder: Path) -> list[Output]:
    async def run() -> list[Output]:
        async with Model.open(folder, device="cpu") as model:
            return await answers(model)

    return asyncio.run(run())


@pytest.mark.parametrize(("name", "way"), in_turn([*CASES, *tiny_models.VARIANTS] if EVERYTHING else FEW, [*WAYS]))
def test_bits_are_those_of_one_device(name: str, way: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.open_on_cluster.HOP_SECONDS", 0.0)  # layers that move are dealt in turn

    async def run() -> list[Output]:
        folder, settings = family_checkpoint(folders, name), WAYS[way]
        config = read_config(folder)
        count = min(settings["count"], config.layers - len(config.joined_layers))
        few = FEW_EXPERTS if config.expert_kinds and "residency" in settings else {}
        async with await open_here(folder, **{**settings, **few, "count": count}) as model:
            return await answers(model)

    assert asyncio.run(run()) == alone(family_checkpoint(folders, name))


async def greedy(model: Model, first: int = 0, new_tokens: int = STEPS) -> tuple[int, ...]:
    output = await model.generate(PROMPT[first:], max_new_tokens=new_tokens, ignore_eos=True)
    return tuple(output.token_ids)


@pytest.fixture(scope="module")
def eight(folders: Path) -> Path:
    """A checkpoint of eight layers."""
    tiny_models.save("llama_gqa_llama3", folders / "eight", layers=8)
    return folders / "eight"


async def of_one(folder: Path) -> list[tuple[int, ...]]:
    async with Model.open(folder, device="cpu") as model:
        return [await greedy(model, first) for first in range(3)]


@pytest.mark.parametrize(("host_layers", "lives"), [(2, "disk"), (3, "host")])
async def test_kv_blocks_may_live_elsewhere(
    host_layers: int, lives: str, eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four layers of each node one stays on the device, and the others live in host memory or on its disk."""
    expected = await of_one(eight)

    def few_rooms(sizes: Mapping[int, int], rooms: Sequence[int]) -> KvPlacement:
        return place_kv(sizes, [layers * max(sizes.values()) for layers in (host_layers, 3)])

    monkeypatch.setattr("pipeline.state.kv_holdings.place_kv", few_rooms)
    async with await open_here(eight, 2, device="cpu-copy", kv_disk=tmp_path, context_tokens=256) as model:
        answers = await asyncio.gather(*(greedy(model, first) for first in range(3)))
        blocks = model.statistics().kv_blocks
    assert answers == expected
    assert (blocks.places["device"].layers, blocks.places[lives].layers) == (2, 6)
    assert min(blocks.bytes_h2d, blocks.bytes_d2h) > 0
    assert (blocks.bytes_read > 0) == (blocks.bytes_written > 0) == (lives == "disk")


async def test_those_who_stay_notice_no_one_who_leaves(eight: Path) -> None:
    """A call is cancelled after any number of turns of the loop, in a pass or between two; its blocks come back."""
    expected = await of_one(eight)
    async with await open_here(eight, 2, device="cpu") as model:
        for turns in (*range(0, 40, 8), *range(40, 400, 60)):
            leaving = asyncio.create_task(greedy(model, 1))
            staying = asyncio.create_task(greedy(model))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            assert await staying == expected[0]
            await asyncio.wait([leaving])
        alone = asyncio.create_task(greedy(model, 2, 100))
        await asyncio.sleep(0.05)
        alone.cancel()
        assert await greedy(model, 2) == expected[2]
        assert not model.runtime.admission.batcher.pool.used


async def test_who_leaves_while_rows_travel_ends_no_line(
    eight: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next node waits for rows of a pass that nobody needs by the time they come."""
    hand_on = LocalSections.hand_on

    async def after_who_has_left(self: LocalSections, *handed_on: Any) -> None:
        if self.hops == 2:
            call.cancel()
            await asyncio.wait([call])
        await hand_on(self, *handed_on)

    monkeypatch.setattr(LocalSections, "hand_on", after_who_has_left)
    async with asyncio.timeout(20), await open_here(eight, 2, device="cpu") as model:
        call = asyncio.create_task(greedy(model))
        await asyncio.wait([call])
        assert await greedy(model, 1) == (await of_one(eight))[1]
    assert call.cancelled()
    assert "failed" not in caplog.text


async def test_a_line_that_fails_in_one_node_is_run_anew(eight: Path) -> None:
    """As in one process those that ran are computed anew, with the same tokens, also those that were drawn."""

    class FailsOnce(Stage):
        name = "fails_once"
        groups = 0

        async def handle(self, message: Message[Slot]) -> Message[Slot]:
            FailsOnce.groups += 1
            if FailsOnce.groups == 60:
                raise OSError("a disk hiccuped")
            return message

    settings: dict[str, Any] = {"insert": {"disk_reader": [FailsOnce]}, "residency": False, "gpu_groups": 2}
    async with await open_here(eight, 2, device="cpu", **settings) as model:
        drawn = model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True, temperature=1.0)
        answers = await asyncio.gather(*(greedy(model, first) for first in range(3)), drawn)
        assert FailsOnce.groups > 60
        assert model.statistics().requests.failed == 0
    assert answers[:3] == await of_one(eight)


async def test_a_row_of_the_embedding_that_cannot_be_read_ends_its_request_alone(eight: Path) -> None:
    async with await open_here(eight, 2, device="cpu") as model:
        section = model.runtime.remote.nodes[0]._runtime.section
        fetch, asked = section.fetch, 0

        async def fetch_some(pieces: list[Piece]) -> tuple[list[Piece], Event]:
            nonlocal asked
            asked += 1
            if asked != 3:
                return await fetch(pieces)
            pieces[1].sequence.fail(RequestError("the embedding row of token 7 cannot be read"))
            return pieces[:1], READY

        section.fetch = fetch_some
        calls = [asyncio.create_task(greedy(model, first)) for first in range(2)]
        answer, failure = await asyncio.gather(*calls, return_exceptions=True)
        assert str(failure) == "section 0: the embedding row of token 7 cannot be read"
    assert answer == (await of_one(eight))[0]


async def test_what_cannot_be_had_on_a_cluster_is_refused(eight: Path, tmp_path: Path) -> None:
    async with await open_here(eight, 2, device="cpu") as model:
        with pytest.raises(RequestError, match="logits_processor: a function runs in this process alone"):
            await model.generate(PROMPT, logits_processor=lambda ids, logits: logits)
        with pytest.raises(RequestError, match="KV blocks of a model on a cluster are on its nodes"):
            await model.save_session(tmp_path / "session", PROMPT, cache_scope="mine")
        with pytest.raises(ConfigError, match="cluster: this looks at a line"):
            _ = model.runtime.line


def test_nodes_that_differ_are_refused(eight: Path) -> None:
    told = {"checkpoint": "a1", "version of torch": "2.9"}
    alike = [Survey(f"here {number}", told, (1, 1, 1)) for number in range(2)]
    check_alike(alike, eight)
    for name, value in (("checkpoint", "b2"), ("version of torch", "2.8")):
        other = Survey("there", {**told, name: value}, (1, 1, 1))
        with pytest.raises(
            ConfigError, match=f"section 0 on node here 0 {told[name]}; section 1 on node there {value}"
        ):
            check_alike([alike[0], other], eight)


def test_weights_that_differ_have_another_digest(eight: Path, tmp_path: Path) -> None:
    told, _ = survey(eight, Config(device="cpu"))
    tiny_models.save_model(tiny_models.build("llama_gqa_llama3", 8), tmp_path, 1)
    assert survey(tmp_path, Config(device="cpu"))[0]["checkpoint"] == told["checkpoint"]
    model = tiny_models.build("llama_gqa_llama3", 8)
    model.lm_head.weight.data += 1
    tiny_models.save_model(model, tmp_path, 1)
    assert survey(tmp_path, Config(device="cpu"))[0]["checkpoint"] != told["checkpoint"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sections": 2}, "sections: these are of a cluster"),
        ({"cluster": ""}, "cluster: need 'auto' or HOST:PORT"),
        ({"cluster": "auto", "devices": ["cpu", "cpu"]}, "a section of a cluster computes on one device"),
        ({"cluster": "auto", "sections": 0}, "sections: need a whole number from 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config(**settings)
