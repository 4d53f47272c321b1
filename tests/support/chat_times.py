"""How long a chat's second turn waits for its first token, and its next turn after a restart, against the first turn.

    PYTHONPATH=. python tests/support/chat_times.py MODEL [--tokens 4000] [--rounds 3] [--answer 48] [NAME=VALUE ...]

NAME=VALUE are settings of `Model.open`. Tokens are random, so that the model needs no tokenizer; each round is a
conversation of its own. The restart is a new `Model.open`, whose time is not counted; that of `load_session` is told
apart.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import Model
from pipeline.tools.commands.settings import with_setting

MORE = 20
"""Tokens of a later question."""


async def first_token(model: Model, prompt: list[int], answer: int, scope: str) -> tuple[float, list[int], int]:
    """The seconds to the first token, all tokens of the conversation then, and how many of the prompt were cached."""
    started, seconds, tokens, cached = time.perf_counter(), 0.0, list(prompt), 0
    stream = model.stream(prompt, max_new_tokens=answer, cache_scope=scope, ignore_eos=True)
    async with contextlib.aclosing(stream) as chunks:
        async for chunk in chunks:
            seconds = seconds or time.perf_counter() - started
            tokens += chunk.token_ids
            cached = chunk.cached_tokens
    return seconds, tokens, cached


async def measure(options: argparse.Namespace, settings: dict[str, Any], folder: Path) -> None:
    """Print a line for each round, then medians and spreads."""
    rows = []
    for index in range(options.rounds):
        draw, path, scope = random.Random(index), folder / f"{index}.session", str(index)

        def tokens(count: int, draw: random.Random = draw) -> list[int]:
            return [draw.randrange(10, 1000) for _ in range(count)]

        async with Model.open(options.model, **settings) as model:
            await first_token(model, tokens(100), 2, "warm")
            first, conversation, _ = await first_token(model, tokens(options.tokens), options.answer, scope)
            second, conversation, cached = await first_token(model, conversation + tokens(MORE), options.answer, scope)
            began = time.perf_counter()
            await model.save_session(path, conversation, cache_scope=scope)
            saving = time.perf_counter() - began
        async with Model.open(options.model, **settings) as model:
            await first_token(model, tokens(100), 2, "warm")
            began = time.perf_counter()
            await model.load_session(path, cache_scope=scope)
            loading = time.perf_counter() - began
            third, _, again = await first_token(model, conversation + tokens(MORE), 2, scope)
        rows.append((first, second, third, loading, saving, path.stat().st_size))
        print(
            f"round {index}: first {first:.3f} s; second {second:.3f} s, {cached} cached; after a restart "
            f"{third:.3f} s, {again} cached; loaded in {loading:.3f} s, saved in {saving:.3f} s, "
            f"{rows[-1][-1] / 1e6:.0f} MB",
            flush=True,
        )
        path.unlink()
    columns = {
        "first turn": [row[0] for row in rows],
        "second / first": [row[1] / row[0] for row in rows],
        "after a restart / first": [row[2] / row[0] for row in rows],
        "with loading / first": [(row[2] + row[3]) / row[0] for row in rows],
    }
    for name, values in columns.items():
        print(f"{name}: median {statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})", flush=True)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--answer", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    room = options.tokens + 3 * (options.answer + MORE)
    settings: dict[str, Any] = {"max_requests": 1, "context_tokens": room}
    for one in options.settings:
        settings = with_setting(settings, one, ())
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        asyncio.run(measure(options, settings, Path(folder)))


if __name__ == "__main__":
    main()
