"""What is ruled out and what is forced: as the processors of transformers do it, token for token."""

import math
import random
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.choosing import Alone
from transformers.generation.logits_process import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from pipeline.errors import RequestError
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.token_rules import Ngrams

SIZE = 11
"""Tokens of the vocabulary: so few that runs come again all the time."""


def sampler(prompt_ids: list[int], size: int = SIZE, **arguments: Any) -> Alone:
    return Alone(size, prompt_ids, **arguments)


def processors(prompt: int, new: int, arguments: dict[str, Any]) -> LogitsProcessorList:
    """In the order of transformers' `generate`."""
    given = arguments.get
    made: LogitsProcessorList = LogitsProcessorList()
    if biases := given("logit_bias"):
        made.append(SequenceBiasLogitsProcessor({(token_id,): float(bias) for token_id, bias in biases.items()}))
    if penalty := given("repetition_penalty"):
        made.append(RepetitionPenaltyLogitsProcessor(penalty))
    if size := given("no_repeat_ngram_size"):
        made.append(NoRepeatNGramLogitsProcessor(size))
    if words := given("bad_words_ids"):
        made.append(NoBadWordsLogitsProcessor(words))
    if fewest := given("min_new_tokens"):
        made.append(MinNewTokensLengthLogitsProcessor(prompt, fewest, given("stop_token_ids"), device="cpu"))
    if (first := given("forced_bos_token_id")) is not None:
        made.append(ForcedBOSTokenLogitsProcessor(first))
    if (last := given("forced_eos_token_id")) is not None:
        made.append(ForcedEOSTokenLogitsProcessor(prompt + new, last))
    if suppressed := given("suppress_tokens"):
        made.append(SuppressTokensLogitsProcessor(suppressed))
    if suppressed := given("begin_suppress_tokens"):
        begin = prompt if prompt > 1 or first is None else prompt + 1
        made.append(SuppressTokensAtBeginLogitsProcessor(suppressed, begin))
    return made


CASES: list[dict[str, Any]] = [
    {"suppress_tokens": [3, 4]},
    {"begin_suppress_tokens": [*range(8)]},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 7},
    {"bad_words_ids": [[1], [2, 3], [4, 4, 5], [0, 1, 2, 3], [6, 7], [8, 7], [7, 7]]},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 2},
    {"forced_eos_token_id": [7, 2]},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": [*range(8)], "forced_eos_token_id": 1},
    {"min_new_tokens": 12, "stop_token_ids": [*range(6)]},
    {"logit_bias": {3: 2.5, 5: -1.25, 6: -100}},
    {"logit_bias": {8: 4, 9: 5}, "repetition_penalty": 2.0, "min_new_tokens": 20, "stop_token_ids": [9]},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "bad_words_ids": [[1, 2], [5]], "suppress_tokens": [0]},
]


@pytest.mark.parametrize("prompt", [1, 2, 3, 40])
@pytest.mark.parametrize("arguments", CASES, ids="-".join)
def test_the_tokens_are_those_of_transformers(arguments: dict[str, Any], prompt: int) -> None:
    for seed in range(3):
        randoms, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        ids = [randoms.randrange(SIZE) for _ in range(prompt)]
        # Runs of one token use the vocabulary up.
        new = min(30, SIZE - len(set(ids))) if arguments.get("no_repeat_ngram_size") == 1 else 30
        if new == 0:
            continue
        chooser = sampler(ids, max_new_tokens=new, **arguments)
        reference = processors(prompt, new, arguments)
        for _ in range(new):
            logits_V = torch.randn(SIZE, generator=generator)
            kept_V = logits_V.clone()
            expected = int(reference(torch.tensor([ids]), logits_V[None].clone())[0].argmax())
            ids.append(chooser.sample(logits_V).token_id)
            assert ids[-1] == expected
            assert torch.equal(logits_V, kept_V)


def test_drawn_tokens_keep_the_rules() -> None:
    chooser = sampler([1, 2], temperature=5.0, seed=3, suppress_tokens=[4], no_repeat_ngram_size=2, max_new_tokens=60)
    ids = [1, 2, *(chooser.sample(torch.zeros(SIZE)).token_id for _ in range(60))]
    pairs = list(pairwise(ids))
    assert len(set(pairs)) == len(pairs)
    assert 4 not in ids


def test_a_forced_token_comes_whatever_is_ruled_out() -> None:
    chooser = sampler([5], max_new_tokens=2, forced_bos_token_id=3, forced_eos_token_id=4, suppress_tokens=[3, 4])
    logits_V = torch.zeros(SIZE)
    assert [chooser.sample(logits_V).token_id for _ in range(2)] == [3, 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_when_no_token_is_left_the_request_is_told_so(temperature: float) -> None:
    chooser = sampler([0, 1], 3, no_repeat_ngram_size=1, temperature=temperature, seed=1)
    assert chooser.sample(torch.zeros(3)).token_id == 2
    with pytest.raises(RequestError, match=r"no token is left after 1: suppress_tokens, .* rule out all 3; ask for"):
        chooser.sample(torch.zeros(3))


def test_logprobs_are_told_of_the_raw_logits() -> None:
    logits_V = torch.arange(SIZE, dtype=torch.float32)
    choice = sampler([0], suppress_tokens=[SIZE - 1], logprobs=1).sample(logits_V)
    assert choice.token_id == SIZE - 2
    assert choice.logprobs == {
        SIZE - 1: float(logits_V.log_softmax(0)[-1]),
        SIZE - 2: float(logits_V.log_softmax(0)[-2]),
    }


@pytest.mark.parametrize("size", [2, 3, 100])
def test_looking_for_runs_takes_little_time_and_memory_however_long_the_text(size: int) -> None:
    prompt_T = torch.randint(0, 2, (200_000,))
    started = time.process_time()
    ngrams = Ngrams(size, prompt_T, len(prompt_T) + 200)
    for step in range(200):
        ngrams.append(step % 2)
        ngrams.completions()
    assert time.process_time() - started < 4
    assert sum(value.nbytes for value in vars(ngrams).values() if isinstance(value, torch.Tensor)) < 8.01 * 200_200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: need a whole number from 0 to 1000; have -1"),
        ({"suppress_tokens": 5}, "suppress_tokens: need token ids from 0 .*; have 5"),
        ({"suppress_tokens": [1, -1]}, "suppress_tokens: need token ids"),
        ({"suppress_tokens": [True]}, "suppress_tokens: need token ids"),
        ({"suppress_tokens": [0] * (2**18 + 1)}, "suppress_tokens: need token ids .*, at most 262144"),
        ({"stop_token_ids": [0] * (2**18 + 1)}, "stop_token_ids: need token ids .*, at most 262144"),
        ({"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens: need token ids"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids: need lists of 1 to 64 token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids: need lists of 1 to 64 token ids"),
        ({"bad_words_ids": [[0] * 65]}, "bad_words_ids: need lists of 1 to 64 token ids"),
        ({"bad_words_ids": [[0]] * 4097}, "bad_words_ids: need a list of at most 4096 lists"),
        ({"bad_words_ids": "abc"}, "bad_words_ids: need a list"),
        ({"forced_eos_token_id": "2"}, "forced_eos_token_id: need token ids"),
        ({"forced_bos_token_id": True}, "forced_bos_token_id: need token ids"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens: need at most the 4 of max_new_tokens; have 5"),
        ({"logit_bias": {1: 100.5}}, "logit_bias: need at most 1024 different token ids, each with a number from -100"),
        ({"logit_bias": {1: math.nan}}, "logit_bias: need"),
        ({"logit_bias": {"1": 1}}, "logit_bias: need"),
        ({"logit_bias": {-1: 1}}, "logit_bias: need"),
        ({"logit_bias": [(1, 1), (1, 2)]}, "logit_bias: need"),
        ({"logit_bias": [1]}, "logit_bias: need"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias: need"),
    ],
)
def test_rules_that_can_never_work_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=f"^{says}"):
        SamplingParameters.from_arguments({}, arguments)


def test_what_can_never_come_is_left_out_and_the_end_is_no_bad_word() -> None:
    lists = ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens")
    for name in lists:
        fitted = SamplingParameters.from_arguments({}, {name: [299, 300, 5000]}).fitted(300, ())
        assert getattr(fitted, name) == (299,)
    assert not SamplingParameters(suppress_tokens=(300,), bad_words_ids=((1, 300), (300,))).fitted(300, ()).has_rules
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        with pytest.raises(RequestError, match=f"^{name}: 300 is outside the 300 tokens"):
            SamplingParameters.from_arguments({}, {name: 300}).fitted(300, ())
    with pytest.raises(RequestError, match=r"^logit_bias: 300 is outside the 300 tokens"):
        SamplingParameters.from_arguments({}, {"logit_bias": {300: -1}}).fitted(300, ())
    words = SamplingParameters(bad_words_ids=((2,), (2, 3), (4,)))
    assert words.fitted(300, (2,)).bad_words_ids == ((2, 3), (4,))
    assert words.fitted(300, ()) is words


def test_an_empty_list_turns_a_default_off() -> None:
    defaults = {"suppress_tokens": [3], "forced_eos_token_id": 2}
    assert SamplingParameters.from_arguments(defaults, {}).has_rules
    off = SamplingParameters.from_arguments(defaults, {"suppress_tokens": [], "forced_eos_token_id": []})
    assert not off.has_rules
    assert math.isfinite(off.temperature)
