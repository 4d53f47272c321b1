"""What a model computes around its layers, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Embedding rows are multiplied by `embedding_multiplier`, which is rounded to the dtype that is computed in.

    Logits are divided by `logits_divisor`; with a cap c they then are c * tanh(logits / c).
    """

    embedding_multiplier: float = 1.0
    logits_divisor: float = 1.0
    logits_softcap: float | None = None


PLAIN = Outside()
