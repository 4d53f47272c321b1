"""Chooses the next token from logits: penalties, rules, temperature, top-k, top-p, min-p, in this order.

Names and meanings are those of Hugging Face `generate` and of vLLM. Shape letters: V vocabulary, M a part of it.
"""

import math
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.errors import RequestError
from pipeline.generation.parameters import ANY_SEED, SEEDS, SamplingParameters
from pipeline.generation.token_rules import TokenRules
from pipeline.system.threads import slices

SLICE_TOKENS = 1 << 14
NUCLEUS_GUESS = 1024
"""Top-p first looks at so many tokens: they hold the mass that it needs nearly always, and save sorting 128k."""


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
        self, parameters: SamplingParameters, prompt_ids: "array[int]", vocabulary_size: int, index: int = 0
    ) -> None:
        self._parameters = parameters
        self._vocabulary_size = vocabulary_size
        self._uniform = None if parameters.is_greedy else _uniform_numbers(parameters.seed, index)
        self._repeats = parameters.repetition_penalty != 1
        self._counts = bool(parameters.presence_penalty or parameters.frequency_penalty)
        self._prompt_T = _ids_tensor(prompt_ids) if self._repeats or parameters.has_rules else None
        self._rules: TokenRules | None = None
        self._started = False
        self._chosen = 0

    @staticmethod
    def table_bytes(vocabulary_size: int) -> int:
        """The most that the tables of one request take."""
        return vocabulary_size * (torch.bool.itemsize + torch.float32.itemsize)

    def end(self) -> None:
        """Let go of the tables; no token is chosen any more."""
        self._seen_V = self._counts_V = torch.empty(0)
        self._rules = self._prompt_T = None

    def sample(self, logits_V: torch.Tensor) -> Choice:
        """Choose from the logits of one position (fp32, on the host; not modified).

        Raises `RequestError` where they hold NaN or infinity, or where the rules leave no token.
        """
        if not self._started:
            self._start()
        most_likely = int(logits_V.argmax())
        if not math.isfinite(logits_V[most_likely]):
            raise RequestError(
                f"numerical: need finite logits; have {float(logits_V[most_likely])} at token {most_likely}; "
                "the weights are damaged, or the dtype overflows: try dtype='float32'"
            )
        scores_V = self._penalise(logits_V)
        if self._rules is not None:
            scores_V = self._rules.allowed(scores_V)
        if scores_V is not logits_V:
            most_likely = int(scores_V.argmax())
            if not math.isfinite(scores_V[most_likely]):
                raise RequestError(
                    f"no token is left after {self._chosen}: suppress_tokens, bad_words_ids and no_repeat_ngram_size "
                    f"rule out all {self._vocabulary_size}; ask for fewer new tokens, or rule out less"
                )
        token_id = most_likely if self._uniform is None else self._draw(scores_V, self._uniform())
        self._chosen += 1
        if self._rules is not None:
            self._rules.took(token_id)
        if self._repeats:
            self._seen_V[token_id] = True
        if self._counts:
            self._counts_V[token_id] += 1
        return Choice(token_id, self._logprobs(logits_V, token_id))

    def _start(self) -> None:
        self._seen_V = torch.zeros(self._vocabulary_size if self._repeats else 0, dtype=torch.bool)
        self._counts_V = torch.zeros(self._vocabulary_size if self._counts else 0)
        if self._prompt_T is not None:
            if self._repeats:
                self._seen_V[self._prompt_T] = True
            if self._parameters.has_rules:
                self._rules = TokenRules(self._parameters, self._prompt_T)
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

    A negative seed counts as in torch: as the number without a sign that has the same 64 bits.

    torch's generator of the CPU drops all but the low 32 bits of a seed, Python's counts them all.
    """
    if seed in (None, ANY_SEED):
        return random.Random().random
    number = (seed + index) % SEEDS
    if number >= 2**32:
        return random.Random(number).random
    generator = torch.Generator().manual_seed(number)
    return lambda: float(torch.rand((), dtype=torch.float64, generator=generator))


def _ids_tensor(token_ids: "array[int]") -> torch.Tensor:
    """Token ids as int64."""
    ids_T = torch.empty(len(token_ids), dtype=torch.int64)
    for begin in slices(len(token_ids), SLICE_TOKENS):
        part = token_ids[begin : begin + SLICE_TOKENS]
        ids_T[begin : begin + len(part)] = torch.frombuffer(part, dtype=torch.int32)
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
