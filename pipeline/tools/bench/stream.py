"""One token a pass by the public interface of an open model: that of this tree, or, as a program, that of another.

So this file imports nothing of this tree. `python stream.py FILE`, the JSON of `Asked`, prints a row for each scenario.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

Took = Callable[[float], None]


class AskedScenario(TypedDict):
    """Prompts, how many passes to run and how many of them only warm up, and the arguments of a call.

    With `first_token` each pass computes the only prompt anew.
    """

    name: str
    prompts: list[list[int]]
    wanted: int
    warm_up: int
    first_token: bool
    arguments: dict[str, Any]


class Asked(TypedDict):
    """The options that another tree's model is opened with, and the scenarios that it runs."""

    tree: str
    folder: str
    options: dict[str, Any]
    scenarios: list[AskedScenario]


async def generate(model: Any, asked: AskedScenario, took: Took) -> list[list[int]]:
    """Run a scenario, and tell how many seconds each pass took. Returns the tokens of each request."""
    if asked["first_token"]:
        return [await _first_tokens(model, asked, took)]
    return await _decode(model, asked, took)


async def _first_tokens(model: Any, asked: AskedScenario, took: Took) -> list[int]:
    token_ids: list[int] = []
    for _ in range(asked["wanted"]):
        started = time.perf_counter()
        output = await model.generate(asked["prompts"][0], **asked["arguments"])
        took(time.perf_counter() - started)
        token_ids += output.token_ids
    return token_ids


async def _decode(model: Any, asked: AskedScenario, took: Took) -> list[list[int]]:
    """All requests at once; a pass ends when its token comes of the request that was the last to begin."""
    prompts, wanted = asked["prompts"], asked["wanted"]
    token_ids: list[list[int]] = [[] for _ in prompts]
    last, before = -1, time.perf_counter()

    async def follow(index: int) -> None:
        nonlocal last, before
        own, seed = token_ids[index], {"seed": index} if asked["arguments"]["temperature"] else {}
        async with contextlib.aclosing(model.stream(prompts[index], **asked["arguments"], **seed)) as chunks:
            async for chunk in chunks:
                own.extend(chunk.token_ids)
                if last < 0 and all(token_ids):
                    last = index
                if index == last and len(own) <= wanted:
                    now = time.perf_counter()
                    took(now - before)
                    before = now
                if last >= 0 and len(token_ids[last]) >= wanted <= len(own):
                    break

    await asyncio.gather(*map(follow, range(len(prompts))))
    return [one[:wanted] for one in token_ids]


async def _rows(asked: Asked) -> list[dict[str, Any]]:
    from torch import cuda

    from pipeline import Model

    rows = []
    async with Model.open(asked["folder"], **asked["options"]) as model:
        for one in asked["scenarios"]:
            seconds: list[float] = []
            token_ids = await generate(model, one, seconds.append)
            print(f"{asked['tree']}, {one['name']}: the last pass in {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
            rows.append(
                {
                    "scenario": one["name"],
                    "pass_seconds": seconds[one["warm_up"] :],
                    "read_bytes_per_pass": 0.0,
                    "token_ids": token_ids,
                    "floors": {},
                    "moving_groups": None,
                    "device_bytes": cuda.max_memory_allocated() if cuda.is_initialized() else 0,
                }
            )
    return rows


if __name__ == "__main__":
    asked: Asked = json.loads(Path(sys.argv[1]).read_text())
    sys.path[0] = asked["tree"]  # in the place of this file's folder
    print(json.dumps(asyncio.run(_rows(asked))))
