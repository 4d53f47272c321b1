"""What a sequence brings to the choice of its next token, and what comes back. Choosing is in `row_sampler`.

Names and meanings are those of Hugging Face `generate` and of vLLM.
"""

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.errors import RequestError, shown
from pipeline.generation.drawing import Filters
from pipeline.generation.grammar import GrammarState
from pipeline.generation.parameters import ANY_SEED, SEEDS, SamplingParameters
from pipeline.generation.token_rules import TokenRules
from pipeline.system.threads import slices

SLICE_TOKENS = 1 << 14
DRAWN_AT_ONCE = 32
"""Random numbers; the same as one by one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, and, where they were asked for, log-probabilities by token id, the most likely first."""

    token_id: int
    logprobs: dict[int, float] | None


class Sampler:
    """The settings, the random numbers and the tokens of one sequence. Nothing changes before a token has come.

    So a pass that is computed once more chooses the same token. `settings` are the first of the numbers of `drawing`,
    and `filters` the steps that they need. `index` counts the samples of a call: number i draws
    with `seed` + i. What takes memory is made with the first token: a request that waits for its turn holds none.
    """

    def __init__(
        self, parameters: SamplingParameters, prompt_ids: "array[int]", vocabulary_size: int, index: int = 0
    ) -> None:
        top_k = parameters.top_k if 0 < parameters.top_k < vocabulary_size else 0
        self.filters = Filters(
            parameters.is_greedy,
            parameters.is_penalised,
            parameters.has_rules,
            top_k > 0,
            parameters.top_p < 1,
            parameters.min_p > 0,
        )
        self.settings = (
            parameters.temperature,
            top_k,
            parameters.top_p,
            abs(math.log(parameters.min_p)) if parameters.min_p else math.inf,
            parameters.repetition_penalty,
            parameters.presence_penalty,
            parameters.frequency_penalty,
        )
        self.logprobs, self.prompt_logprobs = (
            None if most is None else min(most, vocabulary_size)
            for most in (parameters.logprobs, parameters.prompt_logprobs)
        )
        self.parameters = parameters
        self.index = index
        self.prompt_ids = prompt_ids
        self.token_ids = array("i")
        self.ended = False
        self._uniform = _uniform_numbers(parameters.seed, index)
        self._drawn: float | None = None
        self._rules: TokenRules | None = None
        self.grammar: GrammarState | None = None

    @property
    def uniform(self) -> float:
        """The random number of the next token, from [0, 1): the same until that has come; 0 where none is drawn."""
        if self._drawn is None:
            self._drawn = 0.0 if self.filters.greedy else next(self._uniform)
        return self._drawn

    @property
    def rules(self) -> TokenRules | None:
        """The rules that the next token keeps, if there are any."""
        if self._rules is None and self.filters.ruled and not self.ended:
            self._rules = TokenRules(self.parameters, ids_tensor(self.prompt_ids))
        return self._rules

    def process(self, scores_1V: torch.Tensor) -> None:
        """Let `logits_processor` of the request change the scores, [1, V] fp32. Raises RequestError where it fails."""
        processor = self.parameters.logits_processor
        if processor is None:
            return
        try:
            given = processor([*self.prompt_ids, *self.token_ids], scores_1V[0].clone())
        except Exception as error:
            failure = RequestError(f"logits_processor: failed for token {self._place}: {type(error).__name__}: {error}")
            raise failure from error
        try:
            scores_V = torch.as_tensor(given, dtype=torch.float32, device=scores_1V.device)
        except (TypeError, ValueError, RuntimeError):  # None of a function that changes them in place, for one
            scores_V = torch.empty(0)
        if scores_V.shape != scores_1V[0].shape:
            need = f"a tensor of {scores_1V.shape[1]} scores to be returned"
            raise RequestError(f"logits_processor: need {need} for token {self._place}; have {shown(given)}")
        if not bool((scores_V < math.inf).all()):
            raise RequestError(f"logits_processor: need scores below infinity for token {self._place}; have nan or inf")
        scores_1V[0] = scores_V

    def keep_to(self, grammar: GrammarState) -> None:
        """Rule out, from the first token on, what the grammar does not allow."""
        self.grammar = grammar
        self.filters = self.filters._replace(penalised=True, ruled=True)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow, as the grammar of the answer has ended."""
        return self.grammar is not None and self.grammar.complete

    @property
    def _place(self) -> int:
        return len(self.token_ids)

    def took(self, token_id: int) -> None:
        """Take note of the token that came."""
        self.token_ids.append(token_id)
        self._drawn = None
        if self._rules is not None:
            self._rules.took(token_id)
        if self.grammar is not None:
            self.grammar.took(token_id)

    def skip(self, token_id: int) -> None:
        """Take note of a token that was chosen elsewhere, with the random number that would have been its own here."""
        _ = self.uniform
        self.took(token_id)

    def end(self) -> None:
        """Let go of the rules; no token is chosen any more."""
        self.ended, self._rules, self.grammar = True, None, None


def _uniform_numbers(seed: int | None, index: int) -> Iterator[float]:
    """Random numbers from [0, 1). Without a seed they begin with what the system gives, which takes no file.

    A negative seed counts as in torch: as the number without a sign that has the same 64 bits.

    torch's generator of the CPU drops all but the low 32 bits of a seed, Python's counts them all.
    """
    number = None if seed in (None, ANY_SEED) else (seed + index) % SEEDS
    if number is None or number >= 2**32:
        draw = random.Random(number).random
        while True:
            yield draw()
    generator = torch.Generator().manual_seed(number)
    while True:
        yield from torch.rand(DRAWN_AT_ONCE, dtype=torch.float64, generator=generator).tolist()


def ids_tensor(token_ids: "array[int]") -> torch.Tensor:
    """Token ids as int64."""
    ids_T = torch.empty(len(token_ids), dtype=torch.int64)
    for begin in slices(len(token_ids), SLICE_TOKENS):
        part = token_ids[begin : begin + SLICE_TOKENS]
        ids_T[begin : begin + len(part)] = torch.frombuffer(part, dtype=torch.int32)
    return ids_T
