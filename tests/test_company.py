"""What a request says, to the last bit of its log-probabilities, is the same whoever else is there and when."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from support.cases import cases, in_turn
from support.company import DTYPES, PROMPTS, ROOM, alone, ask, save

from pipeline import Model
from pipeline.models import decoder, pass_attention

MODES = (False, True)
"""Of `batch_invariant`: the same holds on this device without it."""
IN_TURN = in_turn(DTYPES, MODES[::-1])
SETTINGS = [{"max_tokens_per_pass": 7}, {"max_tokens_per_pass": 61, "policy": "stage3"}, {"device": "cpu-copy"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder)
    return folder


@pytest.mark.parametrize("batch_invariant", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
async def test_company_changes_no_bit(dtype: str, batch_invariant: bool, checkpoint: Path) -> None:
    mode: dict[str, Any] = {"dtype": dtype, "batch_invariant": batch_invariant}
    expected = await alone(checkpoint, **mode)
    async with Model.open(checkpoint, **ROOM, **mode) as model:
        together = await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS))))
        assert together == expected
        late = [asyncio.create_task(ask(model, 5))]
        for index in (3, 2, 0, 4, 1):
            await asyncio.sleep(0.004)
            late.append(asyncio.create_task(ask(model, index)))
        in_another_order = await asyncio.gather(*late)
        assert [in_another_order[place] for place in (3, 5, 2, 1, 4, 0)] == expected


@pytest.mark.parametrize(("settings", "dtype", "batch_invariant"), cases(SETTINGS, DTYPES, MODES), ids=str)
async def test_nor_does_how_much_a_pass_carries_or_in_how_many_parts(
    settings: dict[str, Any], dtype: str, batch_invariant: bool, checkpoint: Path
) -> None:
    mode: dict[str, Any] = {"dtype": dtype, "batch_invariant": batch_invariant}
    expected = await alone(checkpoint, **mode)
    async with Model.open(checkpoint, **{**ROOM, **mode, **settings}) as model:
        assert await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))) == expected


@pytest.mark.parametrize(("dtype", "batch_invariant"), IN_TURN)
async def test_nor_do_shared_prefixes_and_samples(dtype: str, batch_invariant: bool, checkpoint: Path) -> None:
    mode: dict[str, Any] = {"dtype": dtype, "batch_invariant": batch_invariant}
    async with Model.open(checkpoint, **ROOM, **mode) as model:
        expected = [await ask(model, 5, PROMPTS[5][:count]) for count in (100, 90, 70, 49)]
        shared = [await ask(model, 5, PROMPTS[5][:count], cache_scope="a") for count in (100, 90, 70, 49)]
        assert shared == expected
        assert model.statistics().prefixes.hit_tokens == 80 + 64 + 48
        samples = await model.generate(PROMPTS[5], n=3, max_new_tokens=7, ignore_eos=True, logprobs=5, temperature=0.0)
        assert [sample.token_ids for sample in samples] == [expected[0].token_ids] * 3
        assert [sample.logprobs for sample in samples] == [expected[0].logprobs] * 3


@pytest.mark.parametrize("dtype", DTYPES)
async def test_what_was_an_answer_is_computed_anew_as_a_prompt_only_if_batch_invariant(
    dtype: str, checkpoint: Path
) -> None:
    async with Model.open(checkpoint, **ROOM, dtype=dtype, batch_invariant=True) as model:
        first = await ask(model, 1, PROMPTS[5], max_new_tokens=20, cache_scope="a")
        prompt = [*PROMPTS[5], *first.token_ids, 7, 8]
        second = await ask(model, 1, prompt, cache_scope="a")
        assert model.statistics().prefixes.hit_tokens == 96
        assert second == await ask(model, 1, prompt)
    async with Model.open(checkpoint, **ROOM, dtype=dtype) as model:
        await ask(model, 1, PROMPTS[5], max_new_tokens=20, cache_scope="a")
        await ask(model, 1, prompt, cache_scope="a")
        assert model.statistics().prefixes.hit_tokens == 112


@pytest.mark.parametrize(("dtype", "batch_invariant"), IN_TURN)
async def test_nor_does_a_window(dtype: str, batch_invariant: bool, tmp_path: Path) -> None:
    await asyncio.to_thread(functools.partial(save, tmp_path, window=20))
    mode: dict[str, Any] = {"dtype": dtype, "batch_invariant": batch_invariant}
    expected = await alone(tmp_path, **mode)
    async with Model.open(tmp_path, **{**ROOM, **mode, "max_tokens_per_pass": 23}) as model:
        assert await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))) == expected


async def test_nor_does_it_where_all_answers_attend_in_one_compiled_call(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_attention = pytest.importorskip("pipeline.models.cpu_attention", reason="needs numba", exc_type=ImportError)
    attend_answers, most = cpu_attention.attend_answers, 0

    def counted(q_TNH: Any, memory: Any, sequences: Any, *rest: Any) -> Any:
        nonlocal most
        most = max(most, sum(not one.ended() for one in sequences))
        return attend_answers(q_TNH, memory, sequences, *rest)

    monkeypatch.setattr(cpu_attention, "attend_answers", counted)
    monkeypatch.setattr(pass_attention, "is_compiled", lambda kind: True)
    pass_attention._compiled.cache_clear()
    try:
        async with Model.open(checkpoint, **ROOM, dtype="bfloat16") as model:
            most = 0  # without what opening has tried out
            expected = [await ask(model, index) for index in range(len(PROMPTS))]
            assert most == 1
            assert await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))) == expected
            assert most > 1
    finally:
        pass_attention._compiled.cache_clear()


@pytest.mark.parametrize(("dtype", "batch_invariant"), IN_TURN)
async def test_nor_does_a_failure_after_which_all_is_computed_anew(
    dtype: str, batch_invariant: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of an answer are recomputed one by one beside each other, in one pass with their prompt."""
    mode: dict[str, Any] = {"dtype": dtype, "batch_invariant": batch_invariant}
    expected = await alone(checkpoint, **mode)
    ffn_half, calls, fails = decoder.ffn_half, 0, False

    def fails_once(*arguments: Any) -> Any:
        nonlocal calls, fails
        calls += 1
        if fails:
            fails = False
            raise ValueError("the kernel failed")
        return ffn_half(*arguments)

    async with Model.open(checkpoint, **ROOM, **mode) as model:
        monkeypatch.setattr(decoder, "ffn_half", fails_once)
        streams = [asyncio.create_task(ask(model, index)) for index in range(len(PROMPTS))]
        while model.statistics().tokens < 20:
            await asyncio.sleep(0.001)
        fails = True
        assert await asyncio.gather(*streams) == expected
        assert not fails
