"""Where a sampler's random numbers come from, and what a request holds before it draws the first."""

import contextlib
import os
import resource
from array import array
from collections.abc import Iterator

import pytest
import torch
from support.choosing import Alone

from pipeline.generation.sampling import Sampler, SamplingParameters

VOCABULARY_SIZE = 3000


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY_SIZE, generator=torch.Generator().manual_seed(seed)) * 0.1


def draws(seed: int | None, index: int = 0) -> list[int]:
    chooser = Alone(VOCABULARY_SIZE, index=index, temperature=1.0, seed=seed)
    return [chooser.sample(random_logits(step)).token_id for step in range(8)]


def test_every_bit_of_a_seed_counts_and_those_below_32_bits_draw_what_they_always_drew() -> None:
    assert draws(1) == [182, 672, 701, 529, 1671, 327, 1387, 2122]
    different = {tuple(draws(seed)) for seed in (1, -2, -(2**63), *(1 + 2**bit for bit in range(1, 64)))}
    assert len(different) == 66
    assert draws(-2) == draws(2**64 - 2)
    assert draws(2**62 + 5) == draws(2**62 + 5)


@pytest.mark.parametrize("seed", [7, 2**32 - 1, 2**40, 2**63 - 2, -3, -(2**63)])
def test_a_sample_draws_with_its_own_seed(seed: int) -> None:
    assert draws(seed, 1) == draws(seed + 1)
    assert draws(seed, 1) != draws(seed)


@contextlib.contextmanager
def no_descriptor_is_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_choosing_opens_no_file(temperature: float) -> None:
    Alone(5).sample(torch.zeros(5))  # the loop of the tests has its files
    with no_descriptor_is_left():
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/urandom", os.O_RDONLY)
        token_id = Alone(VOCABULARY_SIZE, temperature=temperature).sample(random_logits(1)).token_id
    assert token_id >= 0


def test_a_request_that_waits_holds_no_table_of_the_vocabulary() -> None:
    vocabulary_size = 50_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = SamplingParameters(repetition_penalty=1.1, frequency_penalty=0.1)
    waiting = [Sampler(parameters, array("i", (1, 2)), vocabulary_size) for _ in range(40)]
    assert not [name for one in waiting for name in vars(one) if name.endswith("_V")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
