"""What a model keeps of a conversation goes to a file, and comes from there into the prefix cache after a restart.

Only full blocks that can be found are written, which no pass changes any more. They move through one small buffer,
beside the passes of others.
"""

import asyncio
import contextlib
import functools
import itertools
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
from pipeline.devices.memory import HostMemory
from pipeline.errors import RequestError
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.session_file import SessionFile, SessionHeader, open_session
from pipeline.state.blocks import BLOCK_TOKENS
from pipeline.state.cell_copies import CellCopies
from pipeline.state.prefix_cache import block_digests
from pipeline.state.state_layout import StateLayout
from pipeline.system.threads import outlast
from pipeline.system.written_files import check_writable, writing

CHUNK_BYTES = 8 << 20
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation that was loaded: its tokens and messages, and how many of the tokens need no computing."""

    token_ids: list[int]
    messages: list[dict[str, Any]]
    cached_tokens: int


class Sessions:
    """Saves and loads conversations whose calls share their blocks in one scope."""

    def __init__(self, runtime: ModelRuntime, scope: bytes) -> None:
        self._runtime, self._scope = runtime, scope
        copies = [
            (section.cache.memory, CellCopies(section.cache.memory, section.device)) for section in runtime.sections
        ]
        of_layers = {layer: (layout, copy) for memory, copy in copies for layer, layout in memory.layouts.items()}
        self._layouts = [of_layers[layer][0] for layer in sorted(of_layers)]
        self._copies = [of_layers[layer][1] for layer in sorted(of_layers)]
        self._prefixes = runtime.admission.batcher.prefixes
        self._pool, self._states = self._prefixes.pool, self._prefixes.states

    async def save(self, path: Path, token_ids: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> int:
        """Write what is cached of these tokens; returns of how many.

        Raises ConfigError where the file cannot be written, OSError, SpillError where the disk has lost a block, and
        RequestError where the line has failed meanwhile; then a file that was there stays as it is.
        """
        check_writable(path)
        rope_length = self._runtime.config.rope_length(len(token_ids))
        facts = await _on_thread(self._facts)
        digests = await _on_thread(functools.partial(block_digests, token_ids, self._scope, rope_length))
        table = self._prefixes.hold(digests)
        states = self._held_states(digests[: len(table)])
        try:
            used = len(table) if self._states is None else max(states, default=0) // BLOCK_TOKENS
            header = SessionHeader(
                facts=facts,
                token_ids=list(token_ids),
                messages=list(messages),
                rope_length=rope_length,
                blocks=used,
                edges=list(states),
            )
            for section in self._runtime.sections:
                await section.cache.landed()
            with writing(path) as file:
                await self._write(file, header, table[:used], list(states.values()))
                if [self._pool.find(digest) for digest in digests[:used]] != table[:used]:
                    lost = "a failure of the line has lost what was kept of the conversation"
                    raise RequestError(f"{path}: {lost}; save it again behind its next answer")
        finally:
            self._give_back(table, states)
        return used * BLOCK_TOKENS

    async def load(self, path: Path) -> Session:
        """Let the tokens of a session be found, as many as there is room for.

        Raises RequestError for a file of another model, or one that is damaged: then nothing of it is found.
        """
        with contextlib.closing(await _on_thread(functools.partial(open_session, path))) as file:
            header = file.header
            file.require(await _on_thread(self._facts))
            every = functools.partial(block_digests, header.token_ids, self._scope, header.rope_length)
            digests = (await _on_thread(every))[: header.blocks]
            table = self._prefixes.hold(digests)
            known, states = len(table), dict[int, int]()
            try:
                room = self._pool.blocks - self._pool.used
                table += self._pool.take(min(header.blocks - known, room) * BLOCK_TOKENS) or []
                states = self._expected_states(header.edges, digests[: len(table)])
                await self._read(file, table, known, states)
                for block, digest in zip(table[known:], digests[known:], strict=False):
                    self._pool.register(block, digest)
                self._arrived(states, digests)
            finally:
                self._give_back(table, states)
            cached = self._prefixes.usable(digests[: len(table)]) * BLOCK_TOKENS
            return Session(list(header.token_ids), [dict(one) for one in header.messages], cached)

    def _facts(self) -> dict[str, Any]:
        """What must be equal for cells to be of use."""
        return {
            "model": checkpoint_digest(self._runtime.checkpoint),
            "dtype": str(self._runtime.dtype).removeprefix("torch."),
            "batch_invariant": self._runtime.settings.batch_invariant,
            "block_tokens": BLOCK_TOKENS,
            "layers": [[layout.cell, layout.cell_bytes] for layout in self._layouts],
        }

    def _held_states(self, digests: Sequence[bytes]) -> dict[int, int]:
        """The slots of snapshots, by the tokens before them, that stay until `_give_back`: the latest that may."""
        if self._states is None:
            return {}
        found = {index + 1: self._states.hold(digests[index]) for index in reversed(range(len(digests)))}
        return {count * BLOCK_TOKENS: slot for count, slot in sorted(found.items()) if slot is not None}

    def _expected_states(self, edges: Sequence[int], digests: Sequence[bytes]) -> dict[int, int]:
        """Slots for snapshots that come, by the tokens before them: for the latest that may."""
        if self._states is None:
            return {}
        counts = [edge // BLOCK_TOKENS for edge in reversed(edges) if edge <= len(digests) * BLOCK_TOKENS]
        found = {count: self._states.expect(digests[count - 1]) for count in counts}
        return {count * BLOCK_TOKENS: slot for count, slot in found.items() if slot is not None}

    def _arrived(self, states: dict[int, int], digests: Sequence[bytes]) -> None:
        while self._states is not None and states:
            edge, slot = states.popitem()
            self._states.arrived(digests[edge // BLOCK_TOKENS - 1], slot)

    def _give_back(self, table: Sequence[int], states: dict[int, int]) -> None:
        """Let go of blocks and slots, for which requests may wait."""
        self._pool.give_back(table)
        while self._states is not None and states:
            self._states.let_go(states.popitem()[1])
        self._runtime.admission.resume()

    async def _write(self, file: BinaryIO, header: SessionHeader, table: Sequence[int], states: Sequence[int]) -> None:
        await _on_thread(functools.partial(file.write, header.packed()))
        sums = array("I")
        with self._buffer() as buffer:
            for layer, layout in enumerate(self._layouts):
                cells = enumerate(states if isinstance(layout, StateLayout) else table)
                for _, part in _chunks(cells, layout.cell_bytes):
                    await self._copies[layer].take(layer, part, buffer)
                    view = buffer.view[: len(part) * layout.cell_bytes]
                    sums.extend(await _on_thread(functools.partial(_write, file, view, layout.cell_bytes)))
        await _on_thread(functools.partial(file.write, sums.tobytes()))

    async def _read(self, file: SessionFile, table: Sequence[int], known: int, states: Mapping[int, int]) -> None:
        """Read blocks from the first on that is not known, and states, into the cells where they will be found."""
        header = file.header
        blocks = list(enumerate(table))[known:]
        slots = sorted((header.edges.index(edge), slot) for edge, slot in states.items())
        recurrent = [isinstance(layout, StateLayout) for layout in self._layouts]
        sizes = [layout.cell_bytes for layout in self._layouts]
        counts = [len(header.edges) if one else header.blocks for one in recurrent]
        await _on_thread(functools.partial(file.check, sizes, counts))
        with self._buffer() as buffer:
            for layer, size in enumerate(sizes):
                for first, part in _chunks(slots if recurrent[layer] else blocks, size):
                    view = buffer.view[: len(part) * size]
                    await _on_thread(functools.partial(file.read, layer, first, view))
                    await self._copies[layer].put(layer, part, buffer)

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[HostMemory]:
        buffer = HostMemory(max(CHUNK_BYTES, *(layout.cell_bytes for layout in self._layouts)))
        try:
            yield buffer
        finally:
            buffer.free()


def _chunks(cells: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, list[int]]]:
    """Cells that lie one behind another in a file, by their rank there, as many as a buffer holds; the first rank."""
    most = max(1, CHUNK_BYTES // size)
    for _, run in itertools.groupby(enumerate(cells), lambda pair: (pair[1][0] - pair[0], pair[0] // most)):
        pairs = [pair for _, pair in run]
        yield pairs[0][0], [cell for _, cell in pairs]


def _write(file: BinaryIO, view: memoryview, size: int) -> list[int]:
    """Write cells, and return the checksum of each."""
    file.write(view)
    return [zlib.crc32(view[begin : begin + size]) for begin in range(0, len(view), size)]


async def _on_thread(work: Callable[[], Result]) -> Result:
    """Do it beside the event loop; it has ended also where this is cancelled."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    await outlast([running])
    return running.result()
