"""The arguments of a call: every value that is refused, spellings that mean the same, and what speaks before what."""

import math
import time
from collections import UserList, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.generation.parameters import ID_FIELDS, SamplingParameters

WHOLE = ["max_new_tokens", "top_k", "seed", "logprobs"]
NUMBERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
NEVER = [-(2**64), 2**64, 1e308, math.nan, math.inf, "1", True, [], b"1"]


@pytest.mark.parametrize("value", [*NEVER, 1.0], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_number_is_checked(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: need a whole number from -?\d+ to \d+( or None)?; have "):
        SamplingParameters.from_arguments({}, {name: value})


@pytest.mark.parametrize("value", NEVER, ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_checked(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: need a number from [\d.-]+ to [\d.]+; have "):
        SamplingParameters.from_arguments({}, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("max_new_tokens", 0, "max_new_tokens: need a whole number from 1 .*; have 0"),
        ("top_k", -2, "top_k: need a whole number from -1"),
        ("repetition_penalty", 0, "repetition_penalty: need a number from 0.01"),
        ("stop", "", "stop: need strings that are not empty"),
        ("stop", ["a", ""], "stop: need strings"),
        ("stop", [b"a"], "stop: need strings"),
        ("stop", 3, "stop: need strings"),
        ("stop_token_ids", [-1], "stop_token_ids: need token ids"),
        ("stop_token_ids", [True], "stop_token_ids: need token ids"),
        ("stop_token_ids", 3, "stop_token_ids: need token ids"),
        ("ignore_eos", 1, "ignore_eos: need True or False; have 1"),
        ("stop", "a" * 1023 + "\0", None),
        ("stop", "a" * 1025, "stop: need at most 16 strings of at most 1024 characters; have 1, the longest of 1025"),
        ("stop", ["a" * 250_000] * 4, "stop: need at most .*; have 4, the longest of 250000"),
        ("stop", ["a", "b"] * 9, "stop: need at most .*; have more, the longest of 1"),
    ],
)
def test_the_other_values_are_checked(name: str, value: object, match: str | None) -> None:
    if match is None:
        assert SamplingParameters.from_arguments({}, {name: value}).stop == (value,)
        return
    with pytest.raises(RequestError, match=f"^{match}"):
        SamplingParameters.from_arguments({}, {name: value})


@given(st.sampled_from([*WHOLE, *NUMBERS]), st.integers() | st.floats() | st.text() | st.booleans() | st.none())
def test_a_value_is_accepted_whole_or_refused_by_name(name: str, value: object) -> None:
    try:
        parameters = SamplingParameters.from_arguments({}, {name: value})
    except RequestError as error:
        assert str(error).startswith(f"{name}: need ")  # noqa: PT017
        assert len(str(error)) < 200  # noqa: PT017
    else:
        assert value is None or getattr(parameters, name) == value


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("temprature", "did you mean 'temperature'[?]"),
        ("max_token", "did you mean 'max_tokens'[?]"),
        ("topk", "did you mean 'top_k'[?]"),
        ("seeds", "did you mean 'seed'[?]"),
        ("eos", "known are max_new_tokens, .*max_tokens"),
        ("top_a", "known are max_new_tokens, "),  # top_k and top_p are as near as each other
        ("", "known are max_new_tokens, "),
    ],
)
def test_an_unknown_argument_names_what_it_misspells_or_all_known(unknown: str, hint: str) -> None:
    with pytest.raises(RequestError, match=f"^unknown argument '{unknown}'; {hint}"):
        SamplingParameters.from_arguments({}, {unknown: 1})


def test_max_tokens_is_max_new_tokens() -> None:
    assert SamplingParameters.from_arguments({}, {"max_tokens": 5}).max_new_tokens == 5
    for names in (("max_tokens", "max_new_tokens"), ("max_new_tokens", "max_tokens")):
        with pytest.raises(RequestError, match=f"^{' and '.join(names)}: mean the same; leave one of them out"):
            SamplingParameters.from_arguments({}, dict.fromkeys(names, 5))


@pytest.mark.parametrize("kind", [range, deque, UserList, set, frozenset])
def test_whatever_is_like_a_list_is_taken_as_one(kind: Any) -> None:
    ids = range(2, 4) if kind is range else kind([2, 3])
    arguments = dict.fromkeys(ID_FIELDS, ids) | {"bad_words_ids": deque([[1], ids])}
    taken = SamplingParameters.from_arguments({}, {**arguments, "stop": {"a"}})
    assert {getattr(taken, name) for name in ID_FIELDS} == {(2, 3)}
    assert (taken.bad_words_ids, taken.stop) == (((1,), (2, 3)), ("a",))


@pytest.mark.parametrize("value", [b"ab", bytearray(b"ab"), "ab", range(1 << 50), {1: 2}, 5])
def test_what_is_no_list_of_ids_is_refused_without_looking_through_it(value: object) -> None:
    with pytest.raises(RequestError, match=r"^suppress_tokens: need token ids from 0 to .*, in a list; have "):
        SamplingParameters.from_arguments({}, {"suppress_tokens": value})
    with pytest.raises(RequestError, match=r"^bad_words_ids: need lists of 1 to 64 token ids"):
        SamplingParameters.from_arguments({}, {"bad_words_ids": [value]})


def test_lists_and_single_strings_become_tuples() -> None:
    parameters = SamplingParameters.from_arguments({}, {"stop": "\n", "stop_token_ids": [1, 2]})
    assert (parameters.stop, parameters.stop_token_ids) == (("\n",), (1, 2))
    assert SamplingParameters.from_arguments({}, {"stop": ["a", "b"]}).stop == ("a", "b")


def test_numbers_and_arrays_of_numpy_and_torch_count_as_what_they_hold() -> None:
    given = {"seed": numpy.int64(-3), "top_p": numpy.float32(0.5), "stop_token_ids": numpy.array([1, 2])}
    parameters = SamplingParameters.from_arguments({}, {**given, "suppress_tokens": torch.tensor([4])})
    assert parameters == SamplingParameters(seed=-3, top_p=0.5, stop_token_ids=(1, 2), suppress_tokens=(4,))
    lists = {"bad_words_ids": [numpy.array([3, 4]), [5]], "stop_token_ids": list(numpy.array([1, 2]))}
    parameters = SamplingParameters.from_arguments({}, {**lists, "suppress_tokens": tuple(torch.tensor([4]))})
    assert parameters == SamplingParameters(bad_words_ids=((3, 4), (5,)), stop_token_ids=(1, 2), suppress_tokens=(4,))
    with pytest.raises(RequestError, match=r"^seed: need a whole number"):
        SamplingParameters.from_arguments({}, {"seed": numpy.float64(1.0)})


def test_arguments_come_before_defaults_and_none_is_not_given() -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    parameters = SamplingParameters.from_arguments(defaults, {"top_p": 0.5, "temperature": None, "seed": None})
    assert (parameters.temperature, parameters.top_p) == (0.6, 0.5)
    assert SamplingParameters.from_arguments({"do_sample": True}, {}).temperature == 1.0
    assert SamplingParameters.from_arguments({}, {}) == SamplingParameters()


def test_defaults_that_do_not_sample_are_greedy() -> None:
    for defaults in ({"temperature": 0.6, "repetition_penalty": 1.1}, {"do_sample": False, "temperature": 0.6}):
        assert SamplingParameters.from_arguments(defaults, {}).temperature == 0.0
        assert SamplingParameters.from_arguments(defaults, {"temperature": 0.3}).temperature == 0.3
    assert SamplingParameters.from_arguments({"repetition_penalty": 1.1}, {}).repetition_penalty == 1.1


@pytest.mark.parametrize(
    ("name", "one", "most"), [("stop", "a", 16), ("bad_words_ids", [5, 6], 4096), ("stop_token_ids", 5, 1 << 18)]
)
def test_what_lists_too_many_is_not_looked_through(name: str, one: object, most: int) -> None:
    looked_at = 0

    class Million(list[object]):
        def __iter__(self) -> Iterator[object]:
            nonlocal looked_at
            for value in super().__iter__():
                looked_at += 1
                yield value

    with pytest.raises(RequestError, match=f"{name}: .*at most {most}"):
        SamplingParameters.from_arguments({}, {name: Million([one] * 1_000_000)})
    assert looked_at == most + 1


@pytest.mark.parametrize("kind", [numpy.full, torch.full])
def test_an_array_that_is_too_long_is_not_looked_through(kind: Callable[..., Any]) -> None:
    ids = kind((20_000_000,), 5)
    began = time.thread_time()
    with pytest.raises(RequestError, match="stop_token_ids: need token ids from 0 to 2147483647, at most 262144"):
        SamplingParameters.from_arguments({}, {"stop_token_ids": ids})
    assert time.thread_time() - began < 0.2
