"""What a call may say about how its tokens are chosen, and what it means when it says nothing.

Names and meanings are those of Hugging Face `generate` and of vLLM.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import iscoroutinefunction
from itertools import islice
from typing import Any, TypeAlias, TypedDict

from pipeline.errors import RequestError, shown, unknown_name
from pipeline.generation.argument_values import (
    LARGEST_ID,
    MOST_IDS,
    are_ids,
    as_python,
    is_list,
    is_number,
    is_whole,
    plain,
)

ALIASES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
SEEDS = 2**64
ANY_SEED = -1
LOWEST_TEMPERATURE = 1e-4
"""Below it the most likely token is taken: clients send such numbers where 0 is not allowed."""
MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_LOGPROBS = 1000
MOST_PROMPT_LOGPROBS = 20
MOST_BIASES = 1024
MOST_WORDS = 4096
LONGEST_WORD = 64
MOST_OF = {"stop": MOST_STOPS, "bad_words_ids": MOST_WORDS, "logit_bias": MOST_BIASES}
"""How many an argument may list; of what lists more, one more is looked at, so that no call delays all others."""
LOOKED_FOR_FIELDS = ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens")
FORCED_FIELDS = ("forced_bos_token_id", "forced_eos_token_id")
ID_FIELDS = LOOKED_FOR_FIELDS + FORCED_FIELDS

# Inclusive, and narrow enough that no logit of a real model overflows fp32.
WHOLE_RANGES = {
    "max_new_tokens": (1, LARGEST_ID),
    "min_new_tokens": (0, LARGEST_ID),
    "top_k": (-1, LARGEST_ID),
    "seed": (-SEEDS // 2, SEEDS - 1),
    "logprobs": (0, MOST_LOGPROBS),
    "prompt_logprobs": (0, MOST_PROMPT_LOGPROBS),
    "no_repeat_ngram_size": (0, 1000),
}
NUMBER_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
LOWEST_BIAS, HIGHEST_BIAS = -100.0, 100.0


LogitsProcessor: TypeAlias = Callable[[list[int], Any], Any]
"""From token ids and a tensor of logits to one."""


class SamplingArguments(TypedDict, total=False):
    """What a call may give of `SamplingParameters`, each with its type; None counts as not given."""

    max_new_tokens: int | None
    max_tokens: int | None
    min_new_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    forced_bos_token_id: int | Sequence[int] | None
    forced_eos_token_id: int | Sequence[int] | None
    logits_processor: LogitsProcessor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the tokens of one request are chosen. Raises `RequestError` for a value that can never work.

    The rules behind `stop` are those of Hugging Face `generate`.

    Attributes:
        max_new_tokens: the length at which an answer ends, in tokens: at least 1, or 0 with `prompt_logprobs`.
        min_new_tokens: before so many, no token comes that ends the answer; a text of `stop` ends it all the same.
        temperature: divides the logits. 0, or less than 0.0001, takes the most likely token, the lowest id where
            several are equal.
        top_k: only so many of the most likely tokens are drawn from; 0 and -1 are off.
        top_p: only the most likely tokens that together have this probability are drawn from; 1 is off, and 0 leaves
            one token.
        min_p: only tokens with at least this share of the highest probability are drawn from; 0 is off.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that the prompt or the
            answer holds; 1 is off.
        presence_penalty: is subtracted from the logits of tokens that the answer holds.
        frequency_penalty: is subtracted once for each time that the answer holds the token.
        logit_bias: numbers from -100 to 100 that are added to the logits of tokens, up to 1,024, before penalties: a
            mapping by id, of which this keeps the pairs.
        stop: texts that end the answer and are left out of it: up to 16, of up to 1,024 characters.
        stop_token_ids: tokens that end the answer, beside the end tokens of the checkpoint.
        ignore_eos: whether the end tokens of the checkpoint do not end the answer.
        seed: the same seed gives the same draws: any number of 64 bits, with or without a sign. With None or -1, runs
            differ.
        logprobs: so many of the most likely tokens are reported with their log-probabilities, beside the chosen one; 0
            reports the chosen one only, None nothing. Each takes about 100 bytes of the answer, which are in no plan.
        prompt_logprobs: the same of the prompt: for each of its tokens but the first, so many of the most likely
            tokens in its place, and itself. All of the prompt is computed then, whatever KV blocks there are of it.
        suppress_tokens: ids that never come.
        begin_suppress_tokens: ids that do not come first.
        no_repeat_ngram_size: no run of so many tokens comes twice, the prompt included; 0 is off.
        bad_words_ids: lists of ids that do not come in a row; a list that is only an end token is left out.
        forced_bos_token_id: the id, or ids, that come first behind a prompt of one token. A forced token comes even
            where another rule excludes it.
        forced_eos_token_id: the id, or ids, that come last where the length ends the answer.
        logits_processor: a function of your own: `fn(token_ids, logits)` gets the ids of prompt and answer, and the
            logits of the next token, an fp32 tensor in host memory, after penalties and rules and before temperature
            and filters; it returns them, changed. It runs on a thread, and what it raises ends its request. No pass
            begins before it returns: all requests wait for it, so it must be short, and not wait for the model.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: tuple[int, ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()
    logits_processor: LogitsProcessor | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE_RANGES.items():
            value, optional = getattr(self, name), name in ("seed", "logprobs", "prompt_logprobs")
            if name == "max_new_tokens" and self.prompt_logprobs is not None:
                low = 0
            if not (is_whole(value, low, high) or (optional and value is None)):
                raise self._error(name, f"a whole number from {low} to {high}{' or None' if optional else ''}")
        for name, (lowest, highest) in NUMBER_RANGES.items():
            if not is_number(getattr(self, name), lowest, highest):
                raise self._error(name, f"a number from {lowest} to {highest}")
        if self.min_new_tokens > self.max_new_tokens:
            raise self._error("min_new_tokens", f"at most the {self.max_new_tokens} of max_new_tokens")
        if not _are_biases(self.logit_bias):
            numbers = f"a number from {LOWEST_BIAS} to {HIGHEST_BIAS}"
            raise self._error("logit_bias", f"at most {MOST_BIASES} different token ids, each with {numbers}")
        stops = self.stop[: MOST_STOPS + 1] if isinstance(self.stop, tuple) else (None,)
        if not all(isinstance(text, str) and text for text in stops):
            raise self._error("stop", "strings that are not empty")
        if len(stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stops):
            have = f"{'more' if len(stops) > MOST_STOPS else len(stops)}, the longest of {max(map(len, stops))}"
            raise RequestError(
                f"stop: need at most {MOST_STOPS} strings of at most {LONGEST_STOP} characters; have {have}"
            )
        for name in ID_FIELDS:
            if not are_ids(getattr(self, name), MOST_IDS):
                raise self._error(name, f"token ids from 0 to {LARGEST_ID}, at most {MOST_IDS}, in a list")
        words = self.bad_words_ids
        if not isinstance(words, tuple) or len(words) > MOST_WORDS:
            raise self._error("bad_words_ids", f"a list of at most {MOST_WORDS} lists of token ids")
        if not all(word and are_ids(word, LONGEST_WORD) for word in words):
            raise self._error("bad_words_ids", f"lists of 1 to {LONGEST_WORD} token ids from 0 to {LARGEST_ID}")
        processor = self.logits_processor
        if processor is not None and (not callable(processor) or iscoroutinefunction(processor)):
            raise self._error("logits_processor", "a function of token ids and logits, not an async one, or None")
        if not isinstance(self.ignore_eos, bool):
            raise self._error("ignore_eos", "True or False")

    @classmethod
    def from_arguments(
        cls, defaults: Mapping[str, object], arguments: Mapping[str, object], also_known: Sequence[str] = ()
    ) -> "SamplingParameters":
        """The parameters of one call: its `arguments`, else the checkpoint's `defaults`, else those of this class.

        None counts as not given, and numbers and arrays of NumPy and torch as what they hold. `defaults` come from
        `read_generation_defaults`: unless their `do_sample` is true, their temperature does not count. `stop` may be
        one string. Raises `RequestError` for an unknown name too,
        and names the nearest, which may be one of `also_known`: what the call takes beside these.
        """
        merged: dict[str, Any] = {name: value for name, value in defaults.items() if name != "do_sample"}
        merged["temperature"] = merged.get("temperature", 1.0) if defaults.get("do_sample") else 0.0
        merged.update(_by_field(arguments, also_known))
        if isinstance(merged.get("stop"), str):
            merged["stop"] = (merged["stop"],)
        for name in ("stop", "bad_words_ids", "logit_bias", *ID_FIELDS):
            value = merged.get(name)
            if isinstance(value, Mapping) and name == "logit_bias":
                value = tuple(islice(value.items(), MOST_BIASES + 1))
            if isinstance(value, int) and name in FORCED_FIELDS:
                merged[name] = (value,)
            elif is_list(value):
                merged[name] = tuple(map(plain, islice(value, MOST_OF.get(name, MOST_IDS) + 1)))
        return cls(**merged)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < LOWEST_TEMPERATURE

    @property
    def is_penalised(self) -> bool:
        """Whether a token's chances depend on the tokens before it, or on rules."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty) or self.has_rules

    @property
    def has_rules(self) -> bool:
        """Whether tokens are ruled out, or must come, whatever their logits."""
        rules = (self.suppress_tokens, self.begin_suppress_tokens, self.no_repeat_ngram_size, self.bad_words_ids)
        return any((*rules, self.forced_bos_token_id, self.forced_eos_token_id, self.min_new_tokens))

    def fitted(self, vocabulary_size: int, eos_ids: Sequence[int]) -> "SamplingParameters":
        """The same for one model, whose end tokens end the answer, unless they are ignored, and are no bad words.

        What can never come, as its ids are beyond the vocabulary, need not be looked for, and is left out. Raises
        `RequestError` for such ids that are to come, or have a bias.
        """
        to_come: dict[str, Iterable[int]] = {name: getattr(self, name) for name in FORCED_FIELDS}
        to_come["logit_bias"] = dict(self.logit_bias)
        for name, ids in to_come.items():
            if (largest := max(ids, default=0)) >= vocabulary_size:
                raise RequestError(f"{name}: {largest} is outside the {vocabulary_size} tokens")
        looked_for = {name: getattr(self, name) for name in LOOKED_FOR_FIELDS}
        looked_for["stop_token_ids"] += () if self.ignore_eos else tuple(eos_ids)
        left: dict[str, Any] = {
            name: tuple(one for one in dict.fromkeys(ids) if one < vocabulary_size) for name, ids in looked_for.items()
        }
        left["bad_words_ids"] = tuple(
            word
            for word in self.bad_words_ids
            if max(word) < vocabulary_size and (len(word) > 1 or word[0] not in eos_ids)
        )
        return self if all(getattr(self, name) == ids for name, ids in left.items()) else replace(self, **left)

    def _error(self, name: str, need: str) -> RequestError:
        return RequestError(f"{name}: need {need}; have {shown(getattr(self, name))}")


def _by_field(arguments: Mapping[str, object], also_known: Sequence[str]) -> dict[str, object]:
    """The arguments that were given, aliases resolved. Raises `RequestError` for an unknown name."""
    known = [field.name for field in fields(SamplingParameters)]
    given: dict[str, object] = {}
    for argument, value in arguments.items():
        name = ALIASES.get(argument, argument)
        if name not in known:
            raise RequestError(unknown_name("argument", argument, [*known, *also_known, *ALIASES]))
        if value is not None and name in given:
            same = " and ".join(one for one in arguments if ALIASES.get(one, one) == name)
            raise RequestError(f"{same}: mean the same; leave one of them out")
        if value is not None:
            given[name] = as_python(value)
    return given


def _are_biases(pairs: object) -> bool:
    """Whether it is a tuple of token ids, no one twice, each with a number."""
    if not isinstance(pairs, tuple) or len(pairs) > MOST_BIASES:
        return False
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return False
    ids = tuple(token_id for token_id, _ in pairs)
    numbers = all(is_number(bias, LOWEST_BIAS, HIGHEST_BIAS) for _, bias in pairs)
    return numbers and are_ids(ids, MOST_BIASES) and len(set(ids)) == len(ids)
