"""Chooses the next token from logits: penalties, temperature, top-k, top-p, min-p, in this order.

Names and meanings are those of Hugging Face `generate` and of vLLM. Shape letters: V vocabulary, M a part of it.
"""

import difflib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from pipeline.errors import RequestError, shown
from pipeline.threads import slices

ALIASES = {"max_tokens": "max_new_tokens"}
LARGEST_ID = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LOWEST_TEMPERATURE = 1e-4
SLICE_TOKENS = 1 << 14
MOST_STOPS = 16
LONGEST_STOP = 1024
NUCLEUS_GUESS = 1024
"""Top-p first looks at so many tokens: they hold the mass that it needs nearly always, and save sorting 128k."""

# Inclusive, and narrow enough that no logit of a real model overflows fp32.
WHOLE_RANGES = {
    "max_new_tokens": (1, LARGEST_ID),
    "top_k": (0, LARGEST_ID),
    "seed": (0, LARGEST_SEED),
    "logprobs": (0, 1000),
}
NUMBER_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How one request wants its tokens chosen. Raises `RequestError` for a value that can never work.

    `temperature` 0 takes the most likely token, the lowest id where several are. `top_k` 0 is off, `top_p` 0 leaves one
    token. `logprobs` None reports none, 0 only the chosen token's. Runs without a `seed` differ. `stop` takes up to 16
    strings of up to 1,024 characters.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE_RANGES.items():
            value, optional = getattr(self, name), name in ("seed", "logprobs")
            if not (_is_whole(value, low, high) or (optional and value is None)):
                raise self._error(name, f"a whole number from {low} to {high}{' or None' if optional else ''}")
        for name, (lowest, highest) in NUMBER_RANGES.items():
            if not _is_number(getattr(self, name), lowest, highest):
                raise self._error(name, f"a number from {lowest} to {highest}")
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise self._error("temperature", f"0 (the most likely token) or a number from {LOWEST_TEMPERATURE}")
        stops = self.stop[: MOST_STOPS + 1] if isinstance(self.stop, tuple) else (None,)
        if not all(isinstance(text, str) and text for text in stops):
            raise self._error("stop", "strings that are not empty")
        if len(stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stops):
            have = f"{len(self.stop)}, the longest of {max(map(len, stops))}"
            raise RequestError(
                f"stop: need at most {MOST_STOPS} strings of at most {LONGEST_STOP} characters; have {have}"
            )
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or not all(_is_whole(token_id, 0, LARGEST_ID) for token_id in ids):
            raise self._error("stop_token_ids", f"token ids from 0 to {LARGEST_ID}")
        if not isinstance(self.ignore_eos, bool):
            raise self._error("ignore_eos", "True or False")

    @classmethod
    def from_arguments(
        cls, defaults: Mapping[str, object], arguments: Mapping[str, object], also_known: Sequence[str] = ()
    ) -> "SamplingParameters":
        """The parameters of one call: its `arguments`, else the checkpoint's `defaults`, else those of this class.

        None counts as not given. `defaults` come from `read_generation_defaults`: unless their `do_sample` is true,
        their temperature does not count. `stop` may be one string. Raises `RequestError` for an unknown name too,
        and names the nearest, which may be one of `also_known`: what the call takes beside these.
        """
        merged: dict[str, Any] = {name: value for name, value in defaults.items() if name != "do_sample"}
        merged["temperature"] = merged.get("temperature", 1.0) if defaults.get("do_sample") else 0.0
        merged.update(_by_field(arguments, also_known))
        if isinstance(merged.get("stop"), str):
            merged["stop"] = (merged["stop"],)
        for name in ("stop", "stop_token_ids"):
            if isinstance(merged.get(name), list):
                merged[name] = tuple(merged[name])
        return cls(**merged)

    def _error(self, name: str, need: str) -> RequestError:
        return RequestError(f"{name}: need {need}; have {shown(getattr(self, name))}")


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, and, where they were asked for, log-probabilities by token id, the most likely first."""

    token_id: int
    logprobs: dict[int, float] | None


class Sampler:
    """Chooses the tokens of one sequence, one after another, and remembers them for the penalties.

    `index` counts the samples of a call: number i draws with `seed` + i. The tables of the penalties are made with the
    first token, so that a request that waits for its turn holds none.
    """

    def __init__(
        self, parameters: SamplingParameters, prompt_ids: Sequence[int], vocabulary_size: int, index: int = 0
    ) -> None:
        self._parameters = parameters
        self._vocabulary_size = vocabulary_size
        self._uniform = _uniform_numbers(parameters.seed, index) if parameters.temperature else None
        self._repeats = parameters.repetition_penalty != 1
        self._counts = bool(parameters.presence_penalty or parameters.frequency_penalty)
        self._prompt_T = _ids_tensor(prompt_ids) if self._repeats else None
        self._started = False

    @staticmethod
    def table_bytes(vocabulary_size: int) -> int:
        """The most that the tables of one request take."""
        return vocabulary_size * (torch.bool.itemsize + torch.float32.itemsize)

    def end(self) -> None:
        """Let go of the tables; no token is chosen any more."""
        self._seen_V = self._counts_V = torch.empty(0)

    def sample(self, logits_V: torch.Tensor) -> Choice:
        """Choose from the logits of one position (fp32, on the host; not modified).

        Raises `RequestError` where they hold NaN or infinity.
        """
        if not self._started:
            self._start()
        most_likely = int(logits_V.argmax())
        if not math.isfinite(logits_V[most_likely]):
            raise RequestError(
                f"numerical: need finite logits; have {float(logits_V[most_likely])} at token {most_likely}; "
                "the weights are damaged, or the dtype overflows: try dtype='float32'"
            )
        if self._repeats or self._counts:
            penalised_V = self._penalise(logits_V)
            most_likely = int(penalised_V.argmax())
        else:
            penalised_V = logits_V
        token_id = most_likely if self._uniform is None else self._draw(penalised_V, self._uniform())
        if self._repeats:
            self._seen_V[token_id] = True
        if self._counts:
            self._counts_V[token_id] += 1
        return Choice(token_id, self._logprobs(logits_V, token_id))

    def _start(self) -> None:
        self._seen_V = torch.zeros(self._vocabulary_size if self._repeats else 0, dtype=torch.bool)
        self._counts_V = torch.zeros(self._vocabulary_size if self._counts else 0)
        if self._prompt_T is not None:
            self._seen_V[self._prompt_T] = True
            self._prompt_T = None
        self._started = True

    def _penalise(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Repetition over prompt and output (CTRL, arXiv 1909.05858), presence and frequency over output (OpenAI)."""
        parameters = self._parameters
        if self._repeats:
            penalty = parameters.repetition_penalty
            repeated_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
            logits_V = torch.where(self._seen_V, repeated_V, logits_V)
        if self._counts:
            logits_V = logits_V - parameters.frequency_penalty * self._counts_V
            logits_V = logits_V - parameters.presence_penalty * (self._counts_V > 0)
        return logits_V

    def _draw(self, logits_V: torch.Tensor, uniform: float) -> int:
        """One random number per token, so that a seed means the same whatever the filters leave."""
        parameters = self._parameters
        scores_V = (logits_V - logits_V.max()) / parameters.temperature
        likely_V = keep_likely(scores_V, parameters.top_k, parameters.top_p, parameters.min_p)
        cumulative_V = likely_V.softmax(0, dtype=torch.float64).cumsum(0)
        return int(torch.searchsorted(cumulative_V, cumulative_V[-1:] * uniform, right=True))

    def _logprobs(self, logits_V: torch.Tensor, token_id: int) -> dict[int, float] | None:
        count = self._parameters.logprobs
        if count is None:
            return None
        logprobs_V = logits_V.log_softmax(0)
        values_M, ids_M = logprobs_V.topk(min(count, logprobs_V.numel()))
        return {**dict(zip(ids_M.tolist(), values_M.tolist(), strict=True)), token_id: float(logprobs_V[token_id])}


def _uniform_numbers(seed: int | None, index: int) -> Callable[[], float]:
    """Random numbers from [0, 1). Without a seed they begin with what the system gives, which takes no file.

    torch's generator of the CPU drops all but the low 32 bits of a seed, Python's counts them all.
    """
    if seed is None or seed + index >= 2**32:
        return random.Random(None if seed is None else seed + index).random
    generator = torch.Generator().manual_seed(seed + index)
    return lambda: float(torch.rand((), dtype=torch.float64, generator=generator))


def _ids_tensor(token_ids: Sequence[int]) -> torch.Tensor:
    """Token ids as int64."""
    ids_T = torch.empty(len(token_ids), dtype=torch.int64)
    for begin in slices(len(token_ids), SLICE_TOKENS):
        part = token_ids[begin : begin + SLICE_TOKENS]
        ids_T[begin : begin + len(part)] = torch.tensor(part)
    return ids_T


def keep_likely(scores_V: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """The scores, -inf where a filter drops the token. Tokens that tie with the last of the top k stay.

    Top-p keeps the fewest tokens that hold `top_p` of the probability (arXiv 1904.09751); min-p keeps those at least
    `min_p` times as probable as the most probable one (arXiv 2407.01082).
    """
    if 0 < top_k < scores_V.numel():
        scores_V = scores_V.masked_fill(scores_V < scores_V.topk(top_k).values[-1], -math.inf)
    if top_p < 1:
        ids_M = _nucleus(scores_V.softmax(0), top_p)
        scores_V = torch.full_like(scores_V, -math.inf).index_copy_(0, ids_M, scores_V[ids_M])
    if min_p > 0:
        scores_V = scores_V.masked_fill(scores_V < scores_V.max() + math.log(min_p), -math.inf)
    return scores_V


def _nucleus(probabilities_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """The ids that top-p keeps, the most likely first."""
    vocabulary_size = probabilities_V.numel()
    for count in (min(NUCLEUS_GUESS, vocabulary_size), vocabulary_size):
        likely_M, ids_M = probabilities_V.topk(count)
        mass_M = likely_M.cumsum(0, dtype=torch.float64)
        if mass_M[-1] >= top_p:
            break
    kept_M = mass_M - likely_M < top_p
    kept_M[0] = True
    return ids_M[kept_M]


def _by_field(arguments: Mapping[str, object], also_known: Sequence[str]) -> dict[str, object]:
    """The arguments that were given, aliases resolved. Raises `RequestError` for a name that nobody knows."""
    known = [field.name for field in fields(SamplingParameters)]
    given: dict[str, object] = {}
    for argument, value in arguments.items():
        name = ALIASES.get(argument, argument)
        if name not in known:
            names = [*known, *also_known]
            nearest = difflib.get_close_matches(argument, [*names, *ALIASES], n=1, cutoff=0)
            raise RequestError(f"{argument}: unknown; did you mean {nearest[0]}? Known are {', '.join(names)}")
        if value is not None and name in given:
            raise RequestError(f"{argument}: means {name}, which is given too; leave one of them out")
        if value is not None:
            given[name] = value
    return given


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
