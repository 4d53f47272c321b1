"""Tokens chosen from logits that a test makes, by the real sampler of rows on a device."""

import asyncio
import atexit
from array import array
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import Device
from pipeline.errors import RequestError
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.row_sampler import Outcome, RowSampler
from pipeline.generation.sampling import Choice, Sampler

RUNNER = asyncio.Runner()
"""One for all: a loop takes files."""
atexit.register(RUNNER.close)


def sampler(vocabulary_size: int, prompt_ids: Sequence[int] = (), index: int = 0, **arguments: Any) -> Sampler:
    parameters = SamplingParameters.from_arguments({}, arguments)
    return Sampler(parameters, array("i", prompt_ids), vocabulary_size, index)


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
        self._logits.tensor.copy_(self._host.tensor)
        sent = await self.rows.send([(one, row) for row, one in enumerate(samplers)])
        ready = self.device.launch("compute", lambda: None, ())
        found = await self.rows.choose("compute", self._logits, sent, ready)
        return [found[one] for one in samplers]

    async def choose(self, samplers: Sequence[Sampler], logits_RV: torch.Tensor) -> list[Outcome]:
        """The same, and the sequences take their tokens."""
        outcomes = await self.outcomes(samplers, logits_RV)
        for one, outcome in zip(samplers, outcomes, strict=True):
            if isinstance(outcome, Choice):
                one.took(outcome.token_id)
        return outcomes


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
