"""The KV cache of all requests, in blocks."""

import torch

from pipeline.devices.open import AnyDevice
from pipeline.models.attention import LayerKV
from pipeline.models.config import ModelConfig
from pipeline.sequences.blocks import BLOCK_TOKENS


class KeyValueBlocks:
    """Keys and values of all layers in blocks, allocated once (rule 2).

    Memory: [B blocks, layers, keys and values, P positions, K kv heads, H head dim] in the compute dtype, so that what
    a layer needs of a block is one run of bytes.
    """

    def __init__(self, config: ModelConfig, blocks: int, dtype: torch.dtype, device: AnyDevice) -> None:
        self._shape = (blocks, config.layers, 2, BLOCK_TOKENS, config.kv_heads, config.head_dim)
        self._dtype = dtype
        self._memory = device.device_memory(kv_bytes(config, blocks, dtype))

    def layer(self, layer: int) -> LayerKV:
        """The keys and values of one layer."""
        return LayerKV(self._memory.tensor.view(self._dtype).view(self._shape)[:, layer])


def kv_bytes(config: ModelConfig, blocks: int, dtype: torch.dtype) -> int:
    """What so many blocks occupy."""
    return blocks * BLOCK_TOKENS * kv_token_bytes(config, dtype)


def kv_token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Keys and values of one position, in all layers."""
    return config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize
