"""Random weights of a model, in pieces that are drawn on all cores, each from a seed of its own.

Norms are 1 and all else is normal with standard deviation 0.02, as transformers initialises them: activations stay
finite through any number of layers, and the bytes do not compress.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pipeline.checkpoints.shard_layout import Tensors, model_specs, stack_of, stored_parts
from pipeline.formats.cpu_threads import block_threads
from pipeline.formats.encoding import Parts
from pipeline.formats.tensors import TensorSpec, stored_dtype
from pipeline.models.model_config import ModelConfig

STANDARD_DEVIATION = 0.02
PIECE_ITEMS = 2 << 20
ONES = ("scalar", "router_scale", "expert_scales")
"""What is 1 beside norms, by short name."""


class Drawn(NamedTuple):
    """What is stored from byte `at` of the tensor of this name on."""

    name: str
    at: int
    stored: torch.Tensor


@dataclass(frozen=True, slots=True)
class WeightPiece:
    """Rows [first, last) of a tensor of this shape, or of item `index` of the stack that `spec` is an item of."""

    spec: TensorSpec
    parts: tuple[TensorSpec, ...]
    shape: tuple[int, ...]
    index: int
    first: int
    last: int


class RandomWeights:
    """The weights of `model`, which are stored as `tensors` says: plain, or in parts, which `encode` makes of rows.

    With a `skew` the rows of routers are multiplied by exp(skew * n), where n is normal: the larger it is, the more
    often the same experts are chosen.
    """

    def __init__(
        self,
        model: ModelConfig,
        tensors: Tensors,
        encode: Callable[[torch.Tensor], Parts],
        dtype: torch.dtype,
        seed: int,
        skew: float,
    ) -> None:
        self._model, self._tensors, self._encode = model, tensors, encode
        self._dtype, self._seed, self._skew = dtype, seed, skew

    def drawn(self) -> Iterator[Sequence[Drawn]]:
        """What each piece is stored as, in the order of the modules."""
        count = torch.get_num_threads()
        threads, running = block_threads(count), deque[Future[Sequence[Drawn]]]()
        for piece in self._pieces():
            running.append(threads.submit(self._draw, piece))
            if len(running) > 2 * count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _pieces(self) -> Iterator[WeightPiece]:
        for spec in model_specs(self._model):
            parts, stack = stored_parts(self._model, spec), stack_of(spec)
            as_it_lies = parts[0].shape if stack is None else parts[0].shape[1:]
            shape = as_it_lies if len(parts) == 1 else spec.shape
            step = max(1, PIECE_ITEMS // math.prod(shape[1:]))
            for index in range(1 if stack is None else stack.count):
                for first in range(0, shape[0], step):
                    yield WeightPiece(spec, parts, shape, index, first, min(first + step, shape[0]))

    def _draw(self, piece: WeightPiece) -> Sequence[Drawn]:
        """Each part of a matrix has as many rows as it, but for its header."""
        values = self._values(piece).to(self._dtype)
        encoded = {"": values} if len(piece.parts) == 1 else self._encode(values)
        first_row, found = piece.index * piece.shape[0] + piece.first, []
        for part, value in zip(piece.parts, encoded.values(), strict=True):
            stored = torch.tensor(piece.shape) if part.is_header else value
            stored = stored.to(stored_dtype(self._tensors[part.name].dtype))
            at = 0 if part.is_header else first_row * (stored.nbytes // len(stored))
            found.append(Drawn(part.name, at, stored))
        return found

    def _values(self, piece: WeightPiece) -> torch.Tensor:
        """In float32."""
        short, values = piece.spec.short, torch.empty(piece.last - piece.first, *piece.shape[1:])
        if "norm" in short and not short.endswith("bias"):
            is_left_out = self._model.norm_style == "plus_one" and short != "gated_norm"
            return values.fill_(0.0 if is_left_out else 1.0)
        if short in ONES:
            return values.fill_(1.0)
        values.normal_(0.0, STANDARD_DEVIATION, generator=self._generator(piece.spec.name, piece.index, piece.first))
        if short == "router" and self._skew:
            rows = torch.empty(piece.shape[0]).normal_(generator=self._generator(piece.spec.name, "skew"))
            values.mul_(rows.mul_(self._skew).exp_()[piece.first : piece.last, None])
        return values

    def _generator(self, *of: object) -> torch.Generator:
        """One for each piece, so that no value depends on how many cores there are."""
        digest = hashlib.sha256(repr((self._seed, *of)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
