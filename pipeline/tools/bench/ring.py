"""The plain two-slot ring: weights in pinned host memory, and a layer is copied while the one before computes."""

from collections.abc import Sequence
from typing import Any

import torch

ALIGNMENT = 256


def stream_through_ring(layers: Sequence[Any], device: torch.device) -> None:
    """Let the layers of a model take turns in two slots on the device. Each pass must run all of them, in order.

    The parameters of a layer become views of its slot; their values move to host memory, page-locked for a GPU.
    """
    ring = _Ring(layers, device)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ring.begins(index))
        layer.register_forward_hook(lambda *_, index=index: ring.computed(index))


class _Ring:
    """Layer i is computed in slot i % 2. A slot is filled again behind the computation that read it last."""

    def __init__(self, layers: Sequence[Any], device: torch.device) -> None:
        self._torch: Any = getattr(torch, device.type)  # streams and events, which do nothing on a CPU
        self._copies = self._torch.Stream()
        self._host = [_packed(layer, device) for layer in layers]
        nbytes = max(map(len, self._host))
        self._slots = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._copied, self._computed = ([self._torch.Event() for _ in range(2)] for _ in range(2))
        self._vacant = [True, True]
        self._next = 0
        for index, layer in enumerate(layers):
            _show(layer, self._slots[index % 2])
        self._fill()

    def begins(self, index: int) -> None:
        """Let the computing wait for the layer's copy."""
        self._torch.current_stream().wait_event(self._copied[index % 2])

    def computed(self, index: int) -> None:
        """Note that the layer's computation is launched, and launch the copies that it made room for."""
        self._computed[index % 2].record(self._torch.current_stream())
        self._vacant[index % 2] = True
        self._fill()

    def _fill(self) -> None:
        while self._vacant[slot := self._next % 2]:
            self._vacant[slot] = False
            with self._torch.stream(self._copies):
                self._copies.wait_event(self._computed[slot])
                source = self._host[self._next]
                self._slots[slot][: len(source)].copy_(source, non_blocking=True)
                self._copied[slot].record(self._copies)
            self._next = (self._next + 1) % len(self._host)


def _offsets(layer: Any) -> list[int]:
    """Where each parameter begins, and the end."""
    offsets = [0]
    for parameter in layer.parameters():
        offsets.append(offsets[-1] + -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT)
    return offsets


def _packed(layer: Any, device: torch.device) -> torch.Tensor:
    offsets = _offsets(layer)
    packed = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for parameter, offset in zip(layer.parameters(), offsets, strict=False):
        _view(packed, offset, parameter).copy_(parameter.data)
    return packed


def _show(layer: Any, slot: torch.Tensor) -> None:
    offsets = _offsets(layer)
    for parameter, offset in zip(layer.parameters(), offsets, strict=False):
        parameter.data = _view(slot, offset, parameter)


def _view(memory: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)
