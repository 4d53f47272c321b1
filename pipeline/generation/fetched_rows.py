"""The embedding rows of a pass, and what becomes of the sequences whose rows cannot be read."""

from collections.abc import Callable, Sequence

from actors.core.event import Event
from actors.core.message import READY
from pipeline.generation.batching import Piece
from pipeline.generation.generation_pass import token_ids
from pipeline.reading.embedding import EmbeddingRows


async def fetch_rows(
    embedding: EmbeddingRows, pieces: list[Piece], embeds_alike: Callable[[Sequence[Piece]], bool]
) -> tuple[list[Piece], Event]:
    """Fetch the embedding rows of a pass; a sequence that brings a row that cannot be read ends, and leaves it.

    Returns the pieces that stay, and when their rows are on the device, where no record copies them; no piece where all
    callers have gone. Raises ActorFailed where no row can be read.
    """
    try:
        fetched = await embedding.fetch(token_ids(pieces), upload=not embeds_alike(pieces))
    except Exception as error:
        failures = await embedding.unreadable(token_ids(pieces))
        if not failures:
            raise embedding.failed(error) from error
        for piece in pieces:
            for token_id in filter(failures.get, piece.token_ids):
                piece.sequence.fail(failures[token_id])
        pieces = [piece for piece in pieces if not piece.sequence.ended]
        if pieces:
            return await fetch_rows(embedding, pieces, embeds_alike)
    if all(piece.sequence.ended for piece in pieces):
        return [], READY
    return pieces, fetched
