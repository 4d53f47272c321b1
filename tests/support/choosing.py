"""Tokens chosen from logits that a test makes, by the real sampler of rows on a device."""

import asyncio
import atexit
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors.core.ports import Copy
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import Device
from pipeline.errors import RequestError
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.row_sampler import Outcome, RowSampler
from pipeline.generation.sampling import Choice, Sampler

WARPED: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.3},
    {"temperature": 0.5, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 7},
    {"temperature": 0.9, "min_p": 0.02, "top_p": 0.99},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": 0.6, "repetition_penalty": 1.7},
    {},
    {"repetition_penalty": 3.0},
]
"""Settings that are transformers' too."""
MIXED: list[dict[str, Any]] = [
    *WARPED,
    {"temperature": 1.0, "frequency_penalty": 1.5, "presence_penalty": 0.5, "logprobs": 4},
    {"no_repeat_ngram_size": 1, "suppress_tokens": [5, 6], "logprobs": 0},
    {"temperature": 1.0, "bad_words_ids": [[1], [2, 3]], "forced_eos_token_id": [7, 9], "max_new_tokens": 5},
    {"temperature": 1.0, "logit_bias": {7: 9.5, 3: -100}, "logprobs": 4, "min_new_tokens": 9, "stop_token_ids": [7]},
    {
        "logit_bias": {index: index % 200 - 99.5 for index in range(1024)},
        "min_new_tokens": 2,
        "stop_token_ids": [2, 999],
    },
    {
        "temperature": 0.8,
        "logit_bias": {4: 5.0},
        "logprobs": 4,
        "seed": 2**63,
        "logits_processor": lambda ids, logits: logits.roll(len(ids)),
    },
    {"temperature": 1.0, "masked": True},
    {"repetition_penalty": 1.5, "begin_suppress_tokens": [1, 7], "logprobs": 4, "masked": True},
]
"""All that can be set."""
VOCABULARY_SIZE = 3000
RUNNER = asyncio.Runner()
"""One for all: a loop takes files."""
atexit.register(RUNNER.close)


class Masks:
    """A grammar that allows something else with each token: much changes, or little."""

    complete = False

    def __init__(self, vocabulary_size: int) -> None:
        self._size, self._step = vocabulary_size, 0

    def allowed(self) -> Any:
        return np.packbits(self._left(), bitorder="little")

    def took(self, token_id: int) -> None:
        assert self._left()[token_id]
        self._step += 1

    def _left(self) -> Any:
        allowed_V = np.ones(self._size, bool)
        allowed_V[(slice(0, None, 2), slice(0, 3), slice(1, 4), slice(9, None))[self._step % 4]] = False
        return allowed_V


def random_logits(seed: int, vocabulary_size: int = VOCABULARY_SIZE, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(vocabulary_size, generator=torch.Generator().manual_seed(seed)) * spread


def sampler(
    vocabulary_size: int, prompt_ids: Sequence[int] = (), index: int = 0, *, masked: bool = False, **arguments: Any
) -> Sampler:
    parameters = SamplingParameters.from_arguments({}, arguments)
    made = Sampler(parameters, array("i", prompt_ids), vocabulary_size, index)
    if masked:
        made.keep_to(Masks(vocabulary_size))  # type: ignore[arg-type]
    return made


class Chooser:
    """Chooses for up to `rows` sequences in one pass."""

    def __init__(self, vocabulary_size: int, rows: int = 16, device: Device | None = None) -> None:
        self.device: Device = device or CpuDevice()
        self.rows = RowSampler(self.device, rows, vocabulary_size)
        self._logits = self.device.device_memory(rows * vocabulary_size * 4)
        self._host = self.device.host_memory(rows * vocabulary_size * 4)

    async def outcomes(self, samplers: Sequence[Sampler], logits_RV: torch.Tensor) -> list[Outcome]:
        """What comes of a pass; as when it fails, no sequence takes its token."""
        self._host.tensor.view(torch.float32)[: logits_RV.numel()] = logits_RV.flatten()
        ready = self.device.upload(self._host, self._logits, (Copy(0, 0, logits_RV.nbytes),), ())
        sent = self.rows.send([(one, row) for row, one in enumerate(samplers)])
        found = await self.rows.choose("compute", self._logits, sent, ready)
        return [found[one] for one in samplers]

    async def choose(self, samplers: Sequence[Sampler], logits_RV: torch.Tensor) -> list[Outcome]:
        """The same, and the sequences take their tokens."""
        outcomes = await self.outcomes(samplers, logits_RV)
        for one, outcome in zip(samplers, outcomes, strict=True):
            if isinstance(outcome, Choice):
                one.took(outcome.token_id)
        return outcomes

    async def aclose(self) -> None:
        """Give back threads and memory: a GPU's driver goes on pinning what is only forgotten."""
        await asyncio.to_thread(self.rows.close)
        await self.device.aclose()


class Alone:
    """One sequence, in passes that no other shares."""

    def __init__(self, vocabulary_size: int, prompt_ids: Sequence[int] = (), index: int = 0, **arguments: Any) -> None:
        self.sampler = sampler(vocabulary_size, prompt_ids, index, **arguments)
        self._chooser = Chooser(vocabulary_size, rows=1)

    def sample(self, logits_V: torch.Tensor) -> Choice:
        """The token that is chosen; raises what ends the request."""
        (outcome,) = RUNNER.run(self._chooser.choose([self.sampler], logits_V[None]))
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome


async def company_changes_nothing(device: Callable[[], Device]) -> None:
    """A row is the same alone as among others, and when its pass is computed once more; alone, others had its table."""
    size = 1500

    def made() -> list[Sampler]:
        return [sampler(size, (3, 4, 4), **{"seed": index, **one}) for index, one in enumerate(MIXED)]

    alone, together = made(), made()
    chooser, single = choosers = Chooser(size, len(MIXED), device()), Chooser(size, 1, device())
    for step in range(5):
        logits_RV = torch.randn(len(MIXED), size, generator=torch.Generator().manual_seed(step)) / 2
        logits_RV[step] = logits_RV[0]
        logits_RV[-2:, :4] += 9  # what masks leave out is likely
        first = await chooser.outcomes(together, logits_RV)
        assert await chooser.choose(together, logits_RV) == first
        assert first == [(await single.choose([own], logits_RV[row : row + 1]))[0] for row, own in enumerate(alone)]
        assert all(isinstance(one, Choice) for one in first)
    for one in choosers:
        await one.aclose()
