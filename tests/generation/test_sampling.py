"""Choosing tokens: the filters of transformers, the penalties, reproducibility."""

import math
from typing import Any

import pytest
import support.choosing
import torch
from support.choosing import RUNNER, VOCABULARY_SIZE, Alone, Chooser, random_logits
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.errors import RequestError
from pipeline.generation.drawing import Scratch, choose
from pipeline.generation.sampling import Choice

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


def sampler(vocabulary_size: int = VOCABULARY_SIZE, prompt_ids: tuple[int, ...] = (), **arguments: Any) -> Alone:
    return Alone(vocabulary_size, prompt_ids, **arguments)


def kept(logits_V: torch.Tensor, temperature: float = 1.0, **arguments: Any) -> torch.Tensor:
    """Which tokens can be drawn: those whose likelihood the filters leave, where none ties with the last one."""
    size = len(logits_V)
    scratch = Scratch(torch.zeros(Scratch.nbytes(1, size), dtype=torch.uint8), 1, size)
    one = support.choosing.sampler(size, temperature=temperature, **arguments)
    numbers = torch.tensor([[0.0, 0.0, *one.settings, 0.5]], dtype=torch.float64)
    choose(scratch, logits_V[None], torch.empty(0), numbers, one.filters)
    return scratch.likely[0, :size] > 0


def likely(scores_V: torch.Tensor) -> torch.Tensor:
    """Which of the scores that transformers left are drawn at all: the others are less likely than 10**-13."""
    return scores_V.softmax(-1) > 1e-13


def test_greedy_takes_the_most_likely_token() -> None:
    for seed in range(20):
        logits_V = random_logits(seed)
        choice = sampler().sample(logits_V)
        assert choice.token_id == int(logits_V.argmax())
        assert choice.logprobs is None


@pytest.mark.parametrize("vocabulary_size", [5, 1000, 128256])
def test_greedy_takes_the_lowest_id_of_a_tie(vocabulary_size: int) -> None:
    logits_V = torch.zeros(vocabulary_size)
    assert sampler(vocabulary_size).sample(logits_V).token_id == 0
    ties = torch.tensor([2, vocabulary_size // 2, vocabulary_size - 1])
    logits_V[ties] = 4.0
    assert sampler(vocabulary_size).sample(logits_V).token_id == 2


@pytest.mark.parametrize("top_k", [1, 2, 50, VOCABULARY_SIZE - 1, VOCABULARY_SIZE, 10**6])
def test_top_k_keeps_what_transformers_keeps(top_k: int) -> None:
    scores_V = random_logits(top_k).round(decimals=1)  # with ties
    expected_V = TopKLogitsWarper(top_k)(NO_IDS, scores_V.unsqueeze(0))[0]
    assert torch.equal(kept(scores_V, top_k=top_k), likely(expected_V))


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p: float, spread: float) -> None:
    scores_V = random_logits(1, spread=spread)
    expected_V = TopPLogitsWarper(top_p)(NO_IDS, scores_V.unsqueeze(0))[0]
    kept_V = kept(scores_V, top_p=top_p)
    # Both add thousands of fp32 numbers, from opposite ends: one token at the edge may fall on either side.
    assert int((kept_V != likely(expected_V)).sum()) <= 1
    assert kept_V[scores_V.argmax()]


def test_of_tokens_that_tie_top_p_keeps_the_lowest_ids() -> None:
    logits_V = torch.zeros(700)
    logits_V[[3, 690]] = 5.0
    held = 2 * math.exp(5) / (2 * math.exp(5) + 698)
    top_p = held + 398.5 / 698 * (1 - held)  # both, and 399 of those that tie
    chooser = Chooser(700, rows=64)
    drawn: set[int] = set()
    for step in range(60):
        those = [support.choosing.sampler(700, seed=64 * step + row, temperature=1.0, top_p=top_p) for row in range(64)]
        outcomes = RUNNER.run(chooser.choose(those, logits_V.expand(64, -1)))
        drawn |= {outcome.token_id for outcome in outcomes if isinstance(outcome, Choice)}
    assert drawn - {690} <= set(range(400)), "id 3 is among the first 400"
    assert {3, 690} < drawn
    assert len(drawn) > 380


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float) -> None:
    scores_V = random_logits(2)
    expected_V = MinPLogitsWarper(min_p)(NO_IDS, scores_V.unsqueeze(0))[0]
    assert torch.equal(kept(scores_V, min_p=min_p), expected_V.isfinite())


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output(penalty: float) -> None:
    prompt_ids = (3, 3, 17, 255)
    chooser = sampler(300, prompt_ids, repetition_penalty=penalty)
    reference = RepetitionPenaltyLogitsProcessor(penalty)
    token_ids = list(prompt_ids)
    for seed in range(60):
        logits_V = random_logits(seed, 300, spread=1.0)
        expected_V = reference(torch.tensor([token_ids]), logits_V.unsqueeze(0).clone())[0]
        token_ids.append(chooser.sample(logits_V).token_id)
        assert token_ids[-1] == int(expected_V.argmax())


def test_presence_and_frequency_count_the_output_only() -> None:
    logits_V = torch.tensor([3.0, 2.5, 2.0, 0.0])
    presence = sampler(4, (0, 0), presence_penalty=0.6)
    assert [presence.sample(logits_V).token_id for _ in range(5)] == [0, 1, 0, 0, 0]
    frequency = sampler(4, (0, 0), frequency_penalty=0.6)
    assert [frequency.sample(logits_V).token_id for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    both = sampler(4, (0, 0), frequency_penalty=0.2, presence_penalty=0.5)
    assert [both.sample(logits_V).token_id for _ in range(5)] == [0, 1, 0, 0, 2]


def test_logits_are_not_modified() -> None:
    logits_V = random_logits(4)
    kept_V = logits_V.clone()
    chooser = sampler(
        temperature=0.8, top_k=9, top_p=0.5, min_p=0.1, repetition_penalty=2.0, presence_penalty=1.0, logprobs=3
    )
    for _ in range(3):
        chooser.sample(logits_V)
    assert torch.equal(logits_V, kept_V)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.15, 0.1])
    chooser, draws = Chooser(5, rows=500), 4000
    samplers = [support.choosing.sampler(5, temperature=2.0, seed=seed) for seed in range(500)]
    outcomes = [
        one for _ in range(8) for one in RUNNER.run(chooser.choose(samplers, (probabilities.log() * 2).expand(500, 5)))
    ]
    counts = torch.bincount(torch.tensor([one.token_id for one in outcomes if isinstance(one, Choice)]), minlength=5)
    assert counts[1] == 0
    # Five standard deviations of the most uncertain share, 0.5.
    assert float((counts / draws - probabilities).abs().max()) < 5 * math.sqrt(0.25 / draws)


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        chooser = sampler(temperature=1.0, seed=seed)
        return [chooser.sample(random_logits(step, spread=0.1)).token_id for step in range(20)]

    assert draw(11) == draw(11)
    assert draw(11) != draw(12)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-45, 1e-7, 1e-5, 1e-4])
def test_the_lowest_temperatures_take_the_most_likely_token(temperature: float) -> None:
    logits_V = random_logits(5) * 1e6
    logits_V[40:43] = logits_V.max() + 1e6 * torch.tensor([1.0, 1.0, 0.0])  # two of which tie
    for _ in range(20):
        token_id = sampler(temperature=temperature).sample(logits_V).token_id
        assert token_id == 40 or (temperature == 1e-4 and token_id == 41)


def test_minus_one_is_off_for_top_k_and_any_seed() -> None:
    logits_V = random_logits(6, spread=0.1)

    def draw(**arguments: Any) -> list[int]:
        chooser = sampler(temperature=1.0, **arguments)
        return [chooser.sample(logits_V).token_id for _ in range(8)]

    off = ({"top_k": -1}, {"top_k": 0}, {"top_p": 1}, {"top_p": 1.0})
    assert [draw(seed=3, **one) for one in off] == [draw(seed=3)] * 4
    assert draw(seed=-1) != draw(seed=-1)


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_logprobs_are_those_of_the_raw_logits(count: int) -> None:
    logits_V = random_logits(6, 400)
    expected_V = logits_V.log_softmax(0)
    choice = sampler(400, (5,), temperature=5.0, repetition_penalty=3.0, seed=1, logprobs=count).sample(logits_V)
    assert choice.logprobs is not None
    best_ids = expected_V.argsort(descending=True)[:count].tolist()
    assert list(choice.logprobs)[: len(best_ids)] == best_ids
    assert set(choice.logprobs) == {*best_ids, choice.token_id}
    assert all(value == float(expected_V[token_id]) for token_id, value in choice.logprobs.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_the_request(bad: float, temperature: float) -> None:
    logits_V = random_logits(7)
    logits_V[1234] = bad
    with pytest.raises(RequestError, match=r"numerical: need finite logits; have (nan|inf) at token 1234"):
        sampler(temperature=temperature).sample(logits_V)
    with pytest.raises(RequestError, match="numerical"):
        sampler(temperature=temperature).sample(torch.full((VOCABULARY_SIZE,), -math.inf))


def test_a_forbidden_token_is_never_chosen() -> None:
    logits_V = torch.full((10,), -math.inf)
    logits_V[4] = -3.0
    arguments = {"temperature": 1.0, "repetition_penalty": 2.0, "frequency_penalty": 1.0, "top_p": 0.5, "top_k": 3}
    chooser = sampler(10, (4,), **arguments)
    assert [chooser.sample(logits_V).token_id for _ in range(5)] == [4] * 5


@pytest.mark.parametrize(
    ("logits", "arguments", "drawn"),
    [
        ([-0.0, 0.0, -0.0, -9.0], {"top_k": 1}, {0, 1, 2}),
        ([3.0, 3.0, 3.0, 0.0, 0.0], {"top_p": 0.98, "min_p": 1.0}, {0, 1, 2}),
        ([3.0, 3.0, 3.0, 0.0, 0.0], {"top_p": 0.2}, {0}),
        ([3.0, 3.0, 3.0, 0.0, 0.0], {"top_k": 2, "top_p": 0.5}, {0, 1}),
    ],
)
def test_what_ties_is_drawn_where_no_filter_drops_it(
    logits: list[float], arguments: dict[str, Any], drawn: set[int]
) -> None:
    size = len(logits)
    samplers = [support.choosing.sampler(size, seed=seed, temperature=1.0, **arguments) for seed in range(64)]
    outcomes = RUNNER.run(Chooser(size, 64).choose(samplers, torch.tensor(logits).expand(64, -1)))
    assert {one.token_id for one in outcomes if isinstance(one, Choice)} == drawn
