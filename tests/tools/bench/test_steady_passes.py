"""Passes that are all alike: what they carry, and who must not join them."""

import asyncio

import pytest

from pipeline import Model, RequestError
from pipeline.api import BUNDLED
from pipeline.tools.bench.steady_passes import WARM_UP, room_for, steady_pass_seconds


@pytest.mark.parametrize("tokens", [1, 37])
async def test_each_pass_carries_one_prompt_and_nothing_else(tokens: int) -> None:
    async with Model.open(BUNDLED, device="cpu", **room_for(tokens)) as model:
        carried: list[list[int]] = []
        begin = model.runtime.cache.begin

        def note(pieces: list) -> None:  # type: ignore[type-arg]
            carried.append([len(piece.token_ids) for piece in pieces])
            begin(pieces)

        model.runtime.cache.begin = note  # type: ignore[assignment,method-assign]
        seconds = await steady_pass_seconds(model, tokens, 4)
        assert len(seconds) == 4
        assert min(seconds) > 0
        assert carried == [[tokens]] * (WARM_UP + 4)
        assert model.statistics().requests.running == 0


async def test_somebody_else_in_the_passes_is_an_error() -> None:
    async with Model.open(BUNDLED, device="cpu") as model:
        other = asyncio.create_task(model.generate([1, 2, 3], max_new_tokens=50, ignore_eos=True))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match=r"steady passes: need 6 of 2 tokens each, have .*; leave the model"):
            await steady_pass_seconds(model, 2, 4)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_nothing_is_left_behind_when_it_is_cancelled() -> None:
    async with Model.open(BUNDLED, device="cpu", **room_for(1)) as model:
        measuring = asyncio.create_task(steady_pass_seconds(model, 1, 1000))
        await asyncio.sleep(0.2)
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        await model.generate([1], max_new_tokens=1, ignore_eos=True)
        requests = model.statistics().requests
        assert (requests.running, requests.waiting) == (0, 0)
