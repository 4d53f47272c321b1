"""What the samples of a call give together: their chunks as they come, or their whole outputs."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from pipeline.generation.chunks import Chunk, Output
from pipeline.generation.sequence import RunningSequence


async def chunks_of(samples: Sequence[RunningSequence]) -> AsyncGenerator[Chunk, None]:
    """The chunks of all samples of a call as they come, up to their ends; raises what `fail` was given to one."""
    left = len(samples)
    while left:
        chunk = await samples[0].next_chunk()
        left -= chunk.finish_reason is not None
        yield chunk


async def outputs_of(samples: Sequence[RunningSequence]) -> list[Output]:
    """The whole outputs of the samples of a call, when they are there; raises what `fail` was given to one."""
    chunks: list[list[Chunk]] = [[] for _ in samples]
    async with contextlib.aclosing(chunks_of(samples)) as stream:
        async for chunk in stream:
            chunks[chunk.index].append(chunk)
    return [sample.output(own) for sample, own in zip(samples, chunks, strict=True)]
