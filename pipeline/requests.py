"""From the arguments of a call to its sequences: everything is checked here, before any work."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.build import Runtime
from pipeline.errors import RequestError, shown
from pipeline.prompts import id_slices
from pipeline.sequences.prefix_cache import COMMON_SCOPE, named_scope, private_scope
from pipeline.sequences.sampling import LARGEST_SEED, SamplingParameters
from pipeline.sequences.sequence import RunningSequence
from pipeline.text.tokenizer import Tokenizer

MOST_SAMPLES = 16
MOST_PRIORITY = 2**31 - 1
LONGEST_SCOPE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How a call is served, beside how its tokens are chosen. Raises RequestError for a value that can never work.

    Attributes:
        n: samples of the prompt, which is computed once for all of them; sample i draws with `seed` + i. None is one.
        priority: of calls that wait, the one with the lowest number is served first, and of equals the oldest. What
            runs already is not interrupted.
        cache_scope: calls that give the same name reuse each other's KV blocks, of prompts and of answers, where their
            tokens begin alike. How fast a call is answered tells its caller what others in the scope have sent, so
            name it after those who may know. None shares with nobody; or, with `Config.share_prefixes`, with all other
            calls that give none. A named scope stays apart even then.
    """

    n: int | None = None
    priority: int = 0
    cache_scope: str | None = None

    def __post_init__(self) -> None:
        if self.n is not None and not _is_whole(self.n, 1, MOST_SAMPLES):
            raise self._error("n", f"a whole number from 1 to {MOST_SAMPLES}")
        if not _is_whole(self.priority, -MOST_PRIORITY, MOST_PRIORITY):
            raise self._error("priority", f"a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}")
        scope = self.cache_scope
        if scope is not None and not (isinstance(scope, str) and 1 <= len(scope) <= LONGEST_SCOPE):
            raise self._error("cache_scope", f"a name of 1 to {LONGEST_SCOPE} characters, or None")

    def scope(self, share_prefixes: bool) -> bytes | None:
        """Who shares KV blocks with this call; None where nobody could."""
        if self.cache_scope is not None:
            return named_scope(self.cache_scope)
        if share_prefixes:
            return COMMON_SCOPE
        return private_scope() if (self.n or 1) > 1 else None

    def _error(self, name: str, need: str) -> RequestError:
        return RequestError(f"{name}: need {need}; have {shown(getattr(self, name))}")


OPTIONS = tuple(field.name for field in dataclasses.fields(CallOptions))


def make_sequences(
    runtime: Runtime,
    tokenizer: Tokenizer | None,
    defaults: Mapping[str, object],
    prompt: str | Sequence[int],
    arguments: Mapping[str, Any],
) -> list[RunningSequence]:
    """One sequence for each sample that a call asks for; `arguments` are those of sampling and of `CallOptions`.

    Raises RequestError where they, or the prompt, can never be served.
    """
    options = CallOptions(**{name: arguments[name] for name in OPTIONS if arguments.get(name) is not None})
    chosen = {name: value for name, value in arguments.items() if name not in OPTIONS}
    parameters = SamplingParameters.from_arguments(defaults, chosen, also_known=OPTIONS)
    prompt_ids = _prompt_ids(runtime, tokenizer, prompt)
    _check(runtime, tokenizer, prompt_ids, parameters)
    samples = options.n or 1
    if parameters.seed is not None and parameters.seed + samples > LARGEST_SEED + 1:
        need = f"a whole number from 0 to {LARGEST_SEED + 1 - samples}, as sample i draws with seed + i"
        raise RequestError(f"seed: need {need}; have {parameters.seed}")
    stop_ids = frozenset(parameters.stop_token_ids)
    if not parameters.ignore_eos:
        stop_ids |= set(runtime.config.eos_ids)
    scope = options.scope(runtime.settings.share_prefixes)
    sequences: list[RunningSequence] = []
    for _ in range(samples):
        sequence = RunningSequence(
            prompt_ids,
            parameters,
            stop_ids,
            tokenizer.detokenizer(prompt_ids) if tokenizer else None,
            runtime.config.vocabulary_size,
            scope=scope,
            priority=options.priority,
            earlier=sequences,
        )
        sequences.append(sequence)
    return sequences


def _check(
    runtime: Runtime, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], parameters: SamplingParameters
) -> None:
    need = len(prompt_ids) + parameters.max_new_tokens
    if need > runtime.context_tokens:
        most = runtime.config.max_positions
        larger = f", or open the model with context_tokens={need}" if need <= most else f"; it was made for {most}"
        raise RequestError(
            f"need room for {len(prompt_ids)} prompt and {parameters.max_new_tokens} new tokens, have "
            f"{runtime.context_tokens}: shorten the prompt or lower max_new_tokens{larger}"
        )
    for token_id in parameters.stop_token_ids:
        if token_id >= runtime.config.vocabulary_size:
            raise RequestError(f"stop_token_ids: {token_id} is outside the {runtime.config.vocabulary_size} tokens")
    if parameters.stop and tokenizer is None:
        raise RequestError("stop: stop strings need a tokenizer, and the folder has none; use stop_token_ids")


def _prompt_ids(runtime: Runtime, tokenizer: Tokenizer | None, prompt: object) -> list[int]:
    if not isinstance(prompt, str):
        ids = list(itertools.chain.from_iterable(id_slices(prompt, runtime.config.vocabulary_size)))
    elif tokenizer is None:
        raise RequestError("prompt: text needs a tokenizer, and the folder has none; give token ids")
    else:
        ids = tokenizer.encode(prompt) if prompt else []
    if not ids:
        raise RequestError("prompt: need at least one token, have none")
    return ids


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
