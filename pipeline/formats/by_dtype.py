"""Matrices that are stored in one of several formats: which one the dtype of their values says, not config.json."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.formats.matrix import Format, StoredMatrix
from pipeline.formats.tensors import TensorRange, TensorSpec


@dataclass(frozen=True, slots=True)
class ByDtype:
    """See `Format`. `usual` is what counts where no file is there; `others` have values of these dtypes."""

    usual: Format
    others: Mapping[str, Format]

    @property
    def name(self) -> str:
        """The name of the format in messages."""
        return self.usual.name

    def of(self, dtypes: set[str]) -> Format:
        """The format of values of these dtypes."""
        return next((found for dtype, found in self.others.items() if dtype in dtypes), self.usual)

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensors of the usual format."""
        return self.usual.stored_as(spec)

    def stored(self, spec: TensorSpec, tensors: tuple[TensorRange, ...]) -> StoredMatrix:
        """The matrix in the usual format."""
        return self.usual.stored(spec, tensors)
