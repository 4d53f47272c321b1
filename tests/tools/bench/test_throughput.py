"""Many requests measured: what is asked, what is counted, and against which floors."""

import itertools
import math
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.tools.bench.throughput as bench
from pipeline.api import BUNDLED, Model
from pipeline.errors import RequestError
from pipeline.tools.bench.load import Load
from pipeline.tools.bench.throughput import PassClock, _Run, bench_throughput, measure

NEW_TOKENS = 3
LOAD = Load(4, 9, NEW_TOKENS, seed=3)
COUNTS = [1, 3]
SETTINGS = {"device": "cpu", "dtype": "float32"}


def test_prompts_are_the_same_for_one_seed_and_number_and_fill_their_range() -> None:
    prompts = LOAD.prompts(200, 50)
    assert {len(prompt) for prompt in prompts} == set(range(4, 10))
    assert {token_id for prompt in prompts for token_id in prompt} == set(range(50))
    assert prompts == LOAD.prompts(200, 50)
    assert prompts[:100] != LOAD.prompts(100, 50), "a prefix cache must not help the next number"
    assert prompts != Load(4, 9, NEW_TOKENS, seed=4).prompts(200, 50)
    assert LOAD.most_tokens == 12


def test_arrivals_are_all_at_once_or_a_poisson_process() -> None:
    assert LOAD.arrivals(3) == [0.0, 0.0, 0.0]
    seconds = Load(1, 1, 1, arrivals_per_second=4.0).arrivals(4001)
    gaps = [after - before for before, after in itertools.pairwise(seconds)]
    mean = sum(gaps) / len(gaps)
    assert seconds[0] == 0.0
    assert mean == pytest.approx(0.25, rel=0.05)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.08)


def test_the_clock_shares_time_among_silent_passes_and_leaves_out_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    program: Any = SimpleNamespace(passes=7, computed_tokens=100)
    now = SimpleNamespace(seconds=10.0)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    clock = PassClock(program)

    def at(seconds: float, passes: int, computed_tokens: int) -> None:
        now.seconds, program.passes, program.computed_tokens = seconds, passes, computed_tokens

    clock.submitted()
    at(13.0, 10, 400)  # two of these three passes gave no token
    clock.delivered()
    now.seconds = 13.5
    clock.delivered()  # another request's token of the same pass
    clock.submitted()
    at(14.0, 11, 402)
    clock.delivered()
    clock.ended()
    clock.ended()
    now.seconds = 60.0
    clock.submitted()
    at(62.0, 12, 410)
    clock.delivered()
    assert clock.passes() == [*[(1.0, 100.0)] * 3, (1.0, 2.0), (2.0, 8.0)]


@pytest.mark.usefixtures("everything_moves")
async def test_every_number_of_requests_has_a_row_with_the_tokens_of_requests_alone() -> None:
    said: list[str] = []
    rows = await bench_throughput(BUNDLED, SETTINGS, LOAD, COUNTS, said.append)
    assert [row.requests for row in rows] == COUNTS
    async with Model.open(BUNDLED, **SETTINGS) as model:
        needed, vocabulary_size = model.runtime.catalog.needed_bytes, model.runtime.config.vocabulary_size
        for row in rows:
            prompts = LOAD.prompts(row.requests, vocabulary_size)
            for prompt, token_ids in zip(prompts, row.token_ids, strict=True):
                alone = await model.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
                assert token_ids == alone.token_ids
            assert row.passes == NEW_TOKENS, "one pass serves all"
            computed = sum(map(len, prompts)) + row.requests * (NEW_TOKENS - 1)
            assert row.tokens_per_pass == pytest.approx(computed / NEW_TOKENS)
            assert row.pass_tokens == row.requests
            assert row.tokens_per_second == pytest.approx(row.requests * NEW_TOKENS / row.seconds)
            assert 0.5 * needed < row.read_bytes_per_pass < 2 * needed
            assert row.read_bytes_per_token * row.requests == pytest.approx(row.read_bytes_per_pass)
    for row in rows:
        assert 0 < row.first_token_seconds <= row.first_token_seconds_p90 <= row.seconds
        assert row.output_token_seconds is not None
        assert 0 < row.output_token_seconds < row.seconds / (NEW_TOKENS - 1)
        assert row.read_floor_seconds > 0
        assert row.compute_floor_seconds > 0
        share = max(row.read_floor_seconds, row.compute_floor_seconds) / row.pass_seconds
        assert row.as_dict()["floor_share"] == row.floor_share == pytest.approx(share)
    assert said[0] == "opening the model"
    assert said[1].startswith("1 requests: 0 passes, 0/3 tokens")


async def test_requests_that_arrive_one_after_the_other_are_timed_each_from_its_own_arrival() -> None:
    load = Load(4, 4, 2, arrivals_per_second=8.0, seed=1)
    async with Model.open(BUNDLED, **SETTINGS) as model:
        row = await measure(model, load, 4, lambda text: None)
        run, started = _Run(model, [1, 2, 3], 2, PassClock(model.runtime.program)), time.perf_counter()
        await run.after(0.5)
        seconds = time.perf_counter() - started
    assert row.passes > 2
    assert row.seconds > load.arrivals(4)[-1]
    assert 0 < run.first_token_seconds < seconds - 0.5
    assert 0 < run.output_token_seconds < seconds - 0.5


async def test_a_request_that_gives_too_few_tokens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Model.stream

    async def cut(model: Model, *prompt: Any, **arguments: Any) -> AsyncGenerator[Any, None]:
        arguments["max_new_tokens"] -= 1
        async for chunk in whole(model, *prompt, **arguments):
            yield chunk

    monkeypatch.setattr(Model, "stream", cut)
    async with Model.open(BUNDLED, **SETTINGS) as model:
        with pytest.raises(RequestError, match="need 3 new tokens delivered, have 2"):
            await measure(model, LOAD, 2, lambda text: None)
