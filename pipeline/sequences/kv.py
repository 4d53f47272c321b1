"""The KV cache of the running request, one contiguous run per layer."""

import torch

from pipeline.devices.open import AnyDevice
from pipeline.models.attention import LayerKV
from pipeline.models.config import ModelConfig


class KeyValueCache:
    """Keys and values of all layers for up to `context_tokens` positions, allocated once (rule 2).

    Memory: [layers, keys and values, C context_tokens, K kv heads, H head dim] in the compute dtype.
    """

    def __init__(self, config: ModelConfig, context_tokens: int, dtype: torch.dtype, device: AnyDevice) -> None:
        self._shape = (config.layers, 2, context_tokens, config.kv_heads, config.head_dim)
        self._dtype = dtype
        self._memory = device.device_memory(kv_bytes(config, context_tokens, dtype))

    def layer(self, layer: int) -> LayerKV:
        """The keys and the values of one layer, each [C, K, H]."""
        keys, values = self._memory.tensor.view(self._dtype).view(self._shape)[layer]
        return LayerKV(keys, values)


def kv_bytes(config: ModelConfig, context_tokens: int, dtype: torch.dtype) -> int:
    """What a cache for so many positions occupies."""
    return config.layers * 2 * context_tokens * config.kv_heads * config.head_dim * dtype.itemsize
