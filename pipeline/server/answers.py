"""From the chunks of a model to one object, or to the chunks of a stream."""

import asyncio
import contextlib
import functools
import importlib.metadata
import secrets
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pipeline.server.objects import DeltaChoice, PromptDetails, TextChoice, Usage

if TYPE_CHECKING:
    from pipeline.generation.chunks import Chunk

MOST_AT_ONCE = 1000
"""Tokens that are named at once on the event loop, in some milliseconds."""
Choice = TypeVar("Choice", TextChoice, DeltaChoice)


class GrowingAnswer(Generic[Choice]):
    """An answer that becomes: what each chunk adds to which choice, and what it took.

    There are `samples` choices for each prompt. A stream that `includes_usage` ends with what was used.
    """

    def __init__(self, kind: str, model: str, samples: int, *, includes_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": _fingerprint(),
        }
        self.samples = samples
        self.includes_usage = includes_usage
        self._prompt_tokens = self._cached_tokens = self._new_tokens = 0
        self._begun: set[int] = set()

    @property
    def ended(self) -> bool:
        """Whether nothing more is wanted of the model, though it may go on."""
        return False

    @abstractmethod
    def added(self, index: int, chunk: "Chunk", *, begins: bool) -> list[Choice]:
        """What a chunk adds to the choice with this index, which begins with it or goes on."""

    @abstractmethod
    def frame(self, choices: list[Choice], usage: Usage | UnsetType | None) -> Struct:
        """A chunk of a stream."""

    @abstractmethod
    def whole(self, added: list[list[Choice]], usage: Usage) -> Struct:
        """The object that all that was added to each choice makes."""

    def take(self, prompt: int, chunk: "Chunk") -> list[Choice]:
        """Count a chunk of the prompt with this number, and return what it adds to the answer."""
        index = prompt * self.samples + chunk.index
        begins = index not in self._begun
        self._begun.add(index)
        if begins and chunk.index == 0:
            self._prompt_tokens += chunk.prompt_tokens
            self._cached_tokens += chunk.cached_tokens
        self._new_tokens += len(chunk.token_ids)
        return self.added(index, chunk, begins=begins)

    def around(self, usage: UnsetType | None) -> tuple[bytes, bytes]:
        """What is before and behind the choice in the document of each chunk of a stream, which has one choice."""
        before, behind = msgspec.json.encode(self.frame([], usage)).rsplit(b"[]", 1)
        return before + b"[", b"]" + behind

    @property
    def usage(self) -> Usage:
        """What was used so far."""
        used, new = self._prompt_tokens, self._new_tokens
        return Usage(used, new, used + new, PromptDetails(self._cached_tokens))


@functools.cache
def _fingerprint() -> str:
    """What made the answer: with another one the same seed may give other tokens."""
    try:
        return f"penstock-{importlib.metadata.version('penstock-llm')}"
    except importlib.metadata.PackageNotFoundError:
        return "penstock"


async def documents(
    answer: GrowingAnswer[Choice], chunks: "AsyncGenerator[tuple[int, Chunk], None]"
) -> AsyncGenerator[bytes, None]:
    """The documents of a stream; chunks come with the numbers of their prompts, and are closed with this."""
    before, behind = answer.around(None if answer.includes_usage else UNSET)
    async with contextlib.aclosing(chunks):
        async for prompt, chunk in chunks:
            added = (
                await asyncio.to_thread(answer.take, prompt, chunk) if _is_long(chunk) else answer.take(prompt, chunk)
            )
            for choice in added:
                yield before + msgspec.json.encode(choice) + behind
            if answer.ended:
                break
    if answer.includes_usage:
        yield msgspec.json.encode(answer.frame([], answer.usage))


def _is_long(chunk: "Chunk") -> bool:
    """Whether it scores a long prompt, whose tokens are named on a thread."""
    return chunk.prompt_logprobs is not None and len(chunk.prompt_logprobs) >= MOST_AT_ONCE


async def document(
    answer: GrowingAnswer[Choice], count: int, chunks: "AsyncGenerator[tuple[int, Chunk], None]"
) -> bytes:
    """The one document of an answer with `count` choices, which is known to be a possible number when chunks come."""
    added: defaultdict[int, list[Any]] = defaultdict(list)
    async with contextlib.aclosing(chunks):
        async for prompt, chunk in chunks:
            some = (
                await asyncio.to_thread(answer.take, prompt, chunk) if _is_long(chunk) else answer.take(prompt, chunk)
            )
            for choice in some:
                added[choice.index].append(choice)
            if answer.ended:
                break
    return msgspec.json.encode(answer.whole([added[index] for index in range(count)], answer.usage))
