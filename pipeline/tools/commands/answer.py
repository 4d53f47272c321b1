"""The answer to a prompt so far: how fast it came, and why it ended."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.generation.chunks import Chunk
from pipeline.tools.commands.remarks import counted

INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Answer:
    """The chunks of one call and when they came, in seconds of `time.perf_counter`."""

    chunks: list[Chunk] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    interrupted: bool = False

    def take(self, chunk: Chunk) -> None:
        """Note a chunk that came now."""
        self.chunks.append(chunk)
        self.came.append(time.perf_counter())

    @property
    def text(self) -> str:
        """The text as far as it is complete."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens that came."""
        return [token_id for chunk in self.chunks for token_id in chunk.token_ids]

    @property
    def finish_reason(self) -> str | None:
        """The reason that the last chunk gives, "stop" or "length"; "interrupted" where the user ended it."""
        return INTERRUPTED if self.interrupted else self.chunks[-1].finish_reason if self.chunks else None

    @property
    def first_token_seconds(self) -> float | None:
        """The seconds from the call to the first token."""
        return self.came[0] - self.started if self.came else None

    @property
    def tokens_per_second(self) -> float | None:
        """The rate of the tokens behind the first."""
        return (len(self.came) - 1) / (self.came[-1] - self.came[0]) if len(self.came) > 1 else None

    def ended(self, eos_ids: Collection[int], arguments: Mapping[str, Any]) -> str:
        """Say why the answer ended, and which option would have let it go on."""
        count, last_id = len(self.token_ids), self.token_ids[-1] if self.token_ids else None
        if self.finish_reason == INTERRUPTED:
            return f"interrupted after {counted(count, 'token')}"
        if self.finish_reason == "length":
            return f"cut at {counted(count, 'token')}; --max-new-tokens N allows more"
        if last_id in eos_ids and not arguments.get("ignore_eos"):
            return f"by the model, with token {last_id}; --ignore-eos goes on"
        if last_id in arguments.get("stop_token_ids", ()):
            return f"by token {last_id}, one of --stop-token-ids"
        return "before a text of --stop"

    def lines(self, eos_ids: Collection[int], arguments: Mapping[str, Any]) -> str:
        """Return the lines that people read."""
        first, rate = self.first_token_seconds, self.tokens_per_second
        timing = "" if first is None else f": the first after {first:.2f} s"
        timing += "" if rate is None else f", then {rate:.3g} tokens/s"
        return f"tokens     {len(self.token_ids)}{timing}\nended      {self.ended(eos_ids, arguments)}"

    def as_dict(self, eos_ids: Collection[int], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values, with log-probabilities where they were asked for."""
        of_prompt = [chunk.prompt_logprobs for chunk in self.chunks if chunk.prompt_logprobs is not None]
        logprobs = [chunk.logprobs for chunk in self.chunks if chunk.logprobs is not None]
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "ended": self.ended(eos_ids, arguments),
            "seconds": time.perf_counter() - self.started,
            "first_token_seconds": self.first_token_seconds,
            "tokens_per_second": self.tokens_per_second,
            **({} if arguments.get("logprobs") is None else {"logprobs": logprobs}),
            **({} if not of_prompt else {"prompt_logprobs": of_prompt[0]}),
        }
