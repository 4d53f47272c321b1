"""Where all stays, a pass begins before the tokens of the one before are known: they are what they are otherwise."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.repeated_work import let_work_repeat, until_the_table_is_seen

from pipeline import Model, Output
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.section import Section
from pipeline.models import decoder

PROMPTS = [[1, 5, 9], [4, 3, 7, 11, 20, 8], [9], [31, 7]]
GREEDY: dict[str, Any] = {"ignore_eos": True}
SAMPLED: dict[str, Any] = {"ignore_eos": True, "temperature": 0.9, "top_k": 40, "seed": 7}
Ahead = list[int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=3)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    """The rows of each pass that began ahead."""
    begun: Ahead = []
    program_ahead = Section.ahead

    def count(self: Section, pass_: GenerationPass) -> GenerationPass | None:
        if (following := program_ahead(self, pass_)) is not None:
            begun.append(len(following.pieces))
        return following

    let_work_repeat(monkeypatch)
    monkeypatch.setattr(Section, "ahead", count)
    return begun


@pytest.fixture
async def model(checkpoint: Path, ahead: Ahead) -> AsyncIterator[Model]:
    async with Model.open(checkpoint, device="cpu-copy", max_requests=8) as model:
        await model.generate([3], max_new_tokens=2)
        await until_the_table_is_seen(model)
        ahead.clear()
        yield model
        assert model.statistics().kv_blocks.used == 0


async def generate(model: Model, **asked: Any) -> list[Output]:
    """Requests that end one after the other."""
    return list(
        await asyncio.gather(*(model.generate(p, **asked, max_new_tokens=8 + i) for i, p in enumerate(PROMPTS)))
    )


async def expected_of(checkpoint: Path, **asked: Any) -> list[Output]:
    async with Model.open(checkpoint, device="cpu", residency=False) as model:
        return await generate(model, **asked)


@pytest.mark.parametrize("asked", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_tokens_are_those_of_passes_that_wait_for_tokens(
    asked: dict[str, Any], model: Model, checkpoint: Path, ahead: Ahead
) -> None:
    expected = await expected_of(checkpoint, **asked)
    assert not ahead
    passes = model.runtime.program.passes
    assert await generate(model, **asked) == expected
    assert ahead == [4] * 6, "not the one behind the prompts, nor any behind a last token"
    assert model.runtime.program.passes - passes == 11, "no pass too many, as the lengths are known"


async def test_an_answer_that_ends_with_a_token_is_dropped_from_the_pass_that_has_begun(
    model: Model, checkpoint: Path, ahead: Ahead
) -> None:
    expected = await expected_of(checkpoint, **GREEDY)
    for of_first in range(2, 7):
        stops = [expected[0].token_ids[of_first]]
        async with Model.open(checkpoint, device="cpu", residency=False) as other:
            wanted = await generate(other, **GREEDY, stop_token_ids=stops)
        assert await generate(model, **GREEDY, stop_token_ids=stops) == wanted
    assert await generate(model, **GREEDY) == expected, "nor has it left anything behind"
    assert ahead


async def test_whoever_comes_gets_its_pass_and_whoever_leaves_changes_nobodys_tokens(
    model: Model, checkpoint: Path, ahead: Ahead
) -> None:
    expected = await expected_of(checkpoint, **GREEDY)
    long = asyncio.create_task(model.generate(PROMPTS[0], **GREEDY, max_new_tokens=60))
    leaving = asyncio.create_task(model.generate(PROMPTS[1], **GREEDY, max_new_tokens=60))
    while len(ahead) < 5:
        await asyncio.sleep(0.001)
    assert await generate(model, **GREEDY) == expected
    leaving.cancel()
    assert await generate(model, **GREEDY) == expected
    output = await long
    assert output.token_ids[:8] == expected[0].token_ids
    assert {1, 2} <= {*ahead}
    assert output == await model.generate(PROMPTS[0], **GREEDY, max_new_tokens=60)


async def test_a_reader_that_stops_reading_is_waited_for_as_without_it(
    model: Model, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.answering.MOST_UNREAD", 12)
    stream = model.stream(PROMPTS[0], **GREEDY, max_new_tokens=30)
    first = await anext(stream)
    statistics = model.statistics()
    while not statistics.requests.paused:
        await asyncio.sleep(0.001)
        statistics = model.statistics()
    (sequence,) = model.runtime.admission.batcher.sequences
    assert len(sequence.token_ids) == 1 + sequence.most_unread
    tokens = [*first.token_ids, *[token async for chunk in stream for token in chunk.token_ids]]
    assert tokens == [*(await model.generate(PROMPTS[0], **GREEDY, max_new_tokens=30)).token_ids]
    assert ahead


async def test_what_the_host_must_know_for_the_next_token_is_waited_for(
    model: Model, checkpoint: Path, ahead: Ahead
) -> None:
    for asked in ({"repetition_penalty": 1.3}, {"logprobs": 2}, {"logit_bias": {5: 1.0}}, {"min_new_tokens": 4}):
        expected = await expected_of(checkpoint, **asked)
        ahead.clear()
        assert await generate(model, **asked) == expected
        assert not ahead, asked


async def test_none_begins_while_other_devices_have_a_part_of_the_pass(
    checkpoint: Path, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one device has both ends of the model, and could choose tokens and embed them by itself."""
    expected = await expected_of(checkpoint, **GREEDY)
    monkeypatch.setattr("pipeline.generation.drawn_sections.deal", lambda *_, **__: (0, 1, 1, 0))
    async with asyncio.timeout(20), Model.open(checkpoint, devices=["cpu-copy"] * 2, max_requests=8) as model:
        assert await generate(model, **GREEDY) == expected
        embedding = model.runtime.sections[0].embedding
        while embedding is None or not embedding.is_seen:
            await asyncio.sleep(0.001)
        assert await generate(model, **GREEDY) == expected
    assert not ahead


async def test_a_failure_in_a_pass_that_has_begun_ahead_spoils_no_token(
    model: Model, ahead: Ahead, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await generate(model, **GREEDY)
    ahead.clear()
    ffn_half, failed = decoder.ffn_half, list[int]()

    def fails_once(*arguments: Any) -> Any:
        if len(ahead) == 3 and not failed:
            failed.append(1)
            raise ValueError("failed once")
        return ffn_half(*arguments)

    monkeypatch.setattr(decoder, "ffn_half", fails_once)
    assert await generate(model, **GREEDY) == expected
    assert failed
    (failure,) = [message for message in caplog.messages if "failed once" in message]
    assert "compute_scheduler failed at layer 0 group 'attn'" in failure
