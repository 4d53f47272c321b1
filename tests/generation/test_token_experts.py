"""Experts that follow from tokens: those of rows without a token are some that there are."""

from typing import Any

import pytest
import torch

from pipeline.devices.cpu import CpuDevice
from pipeline.devices.memory import HostMemory
from pipeline.generation.token_experts import TokenExperts


class UsedMemory(CpuDevice):
    """Memory that others had before."""

    def host_memory(self, *arguments: Any, **more: Any) -> HostMemory:
        memory = super().host_memory(*arguments, **more)
        memory.tensor.fill_(0x7F)
        return memory


@pytest.mark.anyio
async def test_rows_without_a_token_use_experts_that_there_are() -> None:
    table_VK = torch.tensor([[3, 1], [0, 2], [2, 3]], dtype=torch.int32)
    device = UsedMemory(copy=True)
    known = TokenExperts({0: table_VK, 4: table_VK.flip(0)}, 8, device)
    await known.begin([2, 1, 1], 8).wait()
    for layer, said in ((0, [[2, 3], [0, 2], [0, 2]]), (4, [[3, 1], [0, 2], [0, 2]])):
        assert known.of_tokens(layer, 3).tolist() == said
        assert known.of_rows(layer, 0, 8).tolist() == said + [[0, 0]] * 5
    await device.aclose()
