"""Passes that are all alike, one right behind the other: each carries one whole prompt of so many tokens."""

import asyncio
import itertools
import time

from pipeline.api import Model
from pipeline.errors import RequestError
from pipeline.tools.bench.policy_runs import prompt_of

WARM_UP = 2
"""The line stands full when the first pass begins, so the first two profit from what was read before."""
LOOK_SECONDS = 0.0005


def room_for(tokens: int) -> dict[str, int]:
    """Settings with which a model can carry such passes, two prompts being there at a time."""
    return {"context_tokens": tokens + 1, "kv_tokens": 4 * (tokens + 1)}


async def steady_pass_seconds(model: Model, tokens: int, passes: int) -> list[float]:
    """The time from the end of one pass to the end of the next, for so many passes.

    A prompt is submitted once the one before is being computed, so that the next pass carries it and nothing else.
    Raises RequestError when the passes carried something else all the same.
    """
    program, prompt = model.runtime.program, prompt_of(tokens, model.runtime.config.vocabulary_size)
    passes_before, tokens_before = program.passes, program.computed_tokens

    async def end_of_pass() -> float:
        await model.generate(prompt, max_new_tokens=1, temperature=0.0, ignore_eos=True)
        return time.perf_counter()

    calls: list[asyncio.Task[float]] = []
    ends: list[float] = []
    try:
        for index in range(WARM_UP + passes):
            if index > 1:
                ends.append(await calls[index - 2])
            while model.runtime.admission.batcher.waiting:  # noqa: ASYNC110  # a batcher does not report that
                await asyncio.sleep(LOOK_SECONDS)
            calls.append(asyncio.create_task(end_of_pass()))
            await asyncio.sleep(0)
        ends += [await call for call in calls[len(ends) :]]
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    ran, computed = program.passes - passes_before, program.computed_tokens - tokens_before
    if (ran, computed) != (len(calls), len(calls) * tokens):
        need, have = f"{len(calls)} of {tokens} tokens each", f"{ran} with {computed} tokens in all"
        raise RequestError(f"steady passes: need {need}, have {have}; leave the model to the measurement")
    return [after - before for before, after in itertools.pairwise(ends)][WARM_UP - 1 :]
