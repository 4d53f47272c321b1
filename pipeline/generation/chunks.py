"""What a request has given: a chunk for each token of its stream, and the whole output."""

from dataclasses import dataclass, field
from typing import TypeAlias

PromptLogprobs: TypeAlias = tuple[dict[int, float] | None, ...]
"""Log-probabilities by token id, for each token of a prompt; None for the first."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one pass added to a stream: one token, and the text that is complete now.

    `finish_reason` is None but in the last chunk of a sample: "stop" or "length". `logprobs` maps token ids to
    log-probabilities. `index` says which of the samples of its call it continues. The prompt has `prompt_tokens`, of
    which `cached_tokens` were found in KV blocks when the sample was admitted. The first chunk of a sample has the
    `prompt_logprobs`, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    logprobs: dict[int, float] | None = None
    index: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = field(default=0, compare=False)
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A finished request. `logprobs` has one entry per token of `token_ids`, or is None when none were asked for.

    `prompt_logprobs` has one for each token of the prompt, and None for the first, or is None like it.
    Of the prompt, `cached_tokens` were found in KV blocks; outputs that differ only in that are equal.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[dict[int, float], ...] | None
    cached_tokens: int = field(default=0, compare=False)
    prompt_logprobs: PromptLogprobs | None = None


def _tuple_when_asked(kind: type, name: str) -> None:
    """Make the tuple when it is asked for: one of millions of ids would delay even callers that never read it."""
    stored = getattr(kind, name)
    setattr(kind, name, property(lambda of: tuple(stored.__get__(of)), stored.__set__))


_tuple_when_asked(Output, "prompt_token_ids")
