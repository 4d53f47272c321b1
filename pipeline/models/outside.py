"""What a model computes around its layers, as data."""

from dataclasses import dataclass

from pipeline.models.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Embedding rows are multiplied by `embedding_multiplier`, which is rounded to the dtype that is computed in.

    Logits are divided by `logits_divisor`; with a cap c they then are c * tanh(logits / c).

    Hidden states may be several `streams`, which are summed up before the last norm. `embedding` are the names
    that the module of the table may have in the checkpoint, and `output` is that of the last matrix.
    """

    embedding_multiplier: float = 1.0
    logits_divisor: float = 1.0
    logits_softcap: float | None = None
    streams: Streams | None = None
    embedding: tuple[str, ...] = ("embed_tokens",)
    output: str = "lm_head"


PLAIN = Outside()
