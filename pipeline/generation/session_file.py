"""A conversation in one file: its tokens and messages, and what the model keeps of them, to go on after a restart.

A file is `magic (16 bytes) | length of the header (8) | its CRC-32 (4) | four zeros | header, JSON | zeros up to a
multiple of 4096 | cells, layer by layer | the CRC-32 of each cell (4 bytes)`, all numbers little endian. Of an
attention layer the cells are its KV blocks; of a recurrent one its states, one for each edge.
"""

import itertools
import json
import os
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import RequestError, shown
from pipeline.state.blocks import BLOCK_TOKENS
from pipeline.system.page_cache import BLOCK_BYTES
from pipeline.system.small_files import open_plain_file

MAGIC = b"penstock session"
PREAMBLE = struct.Struct("<16sQIxxxx")
FORMAT = 1
MOST_HEADER_BYTES = 1 << 28
SUM_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHeader:
    """What a session file says of its cells.

    Attributes:
        facts: what must be equal for the cells to be of use, by name: the model's digest among them.
        token_ids: all tokens of the conversation, of which the first are cached.
        messages: the messages that they were made of, for whoever goes on with them.
        rope_length: the length for which cached keys were rotated.
        blocks: how many KV blocks each attention layer has.
        edges: behind how many tokens each recurrent state stands.
    """

    facts: Mapping[str, Any]
    token_ids: Sequence[int]
    messages: Sequence[Mapping[str, Any]]
    rope_length: int
    blocks: int
    edges: Sequence[int]

    def packed(self) -> bytes:
        """The file up to its cells."""
        raw = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        head = PREAMBLE.pack(MAGIC, len(raw), zlib.crc32(raw)) + raw
        return head + bytes(-len(head) % BLOCK_BYTES)


class SessionFile:
    """A session file that is open for reading."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the header. Raises RequestError for what is no session, or damaged."""
        self.path, self._file = path, file
        head = file.read(PREAMBLE.size)
        if len(head) < PREAMBLE.size or not head.startswith(MAGIC):
            raise RequestError(f"{path}: is no session of penstock; name another file, or one that does not exist")
        _, length, checksum = PREAMBLE.unpack(head)
        raw = file.read(length) if length <= MOST_HEADER_BYTES else b""
        if len(raw) < length or zlib.crc32(raw) != checksum:
            raise self.damaged("its header is not what was written")
        try:
            self.header = self._header(json.loads(raw))
        except (ValueError, RecursionError) as error:
            if isinstance(error, RequestError):
                raise
            raise self.damaged("its header is no JSON") from error
        self._begin = -(-(PREAMBLE.size + length) // BLOCK_BYTES) * BLOCK_BYTES

    def require(self, facts: Mapping[str, Any]) -> None:
        """Refuse cells that are not of use here. Raises RequestError, and says what differs."""
        for name, have in facts.items():
            if (need := self.header.facts.get(name)) != have:
                what = "it was written with another model" if name == "model" else f"{name}: need {shown(need)}"
                raise RequestError(f"{self.path}: {what}, have {shown(have)}")

    def check(self, sizes: Sequence[int], counts: Sequence[int]) -> None:
        """Take the size and the number of each layer's cells. Raises RequestError where the file has another length."""
        self._sizes = sizes
        self._first = list(itertools.accumulate(counts, initial=0))
        nbytes = (size * count for size, count in zip(sizes, counts, strict=True))
        self._begins = list(itertools.accumulate(nbytes, initial=self._begin))
        need, have = self._begins[-1] + SUM_BYTES * self._first[-1], os.fstat(self._file.fileno()).st_size
        if need != have:
            raise self.damaged(f"need {need} bytes, have {have}")
        self._file.seek(self._begins[-1])
        self._sums = array("I", self._file.read(SUM_BYTES * self._first[-1]))

    def read(self, layer: int, first: int, buffer: memoryview) -> None:
        """Read cells of a layer, as many as the buffer holds. Raises RequestError where they are not what was written.

        `first` of the layer's cells is the first. Call `check` before.
        """
        size = self._sizes[layer]
        begin = self._begins[layer] + first * size
        if os.preadv(self._file.fileno(), [buffer], begin) != len(buffer):
            raise self.damaged(f"it ends before byte {begin + len(buffer)}")
        for index in range(len(buffer) // size):
            if zlib.crc32(buffer[index * size :][:size]) != self._sums[self._first[layer] + first + index]:
                raise self.damaged(f"what lies at byte {begin + index * size} is not what was written")

    def close(self) -> None:
        """Close the file; no read may be in flight."""
        self._file.close()

    def damaged(self, what: str) -> RequestError:
        """The error for a file that is not as it was written."""
        return RequestError(f"{self.path}: the session is damaged: {what}; name one that does not exist to begin anew")

    def _header(self, document: Any) -> SessionHeader:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            have = document.get("format") if isinstance(document, dict) else None
            raise RequestError(f"{self.path}: need a session of format {FORMAT}, have {shown(have)}")
        values: dict[str, Any] = {field.name: document.get(field.name) for field in fields(SessionHeader)}
        token_ids, messages, blocks, edges = (values[name] for name in ("token_ids", "messages", "blocks", "edges"))
        sound = (
            isinstance(values["facts"], dict)
            and isinstance(messages, list)
            and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages)
            and all(map(_are_numbers, (token_ids, edges, [blocks, values["rope_length"]])))
            and blocks <= len(token_ids) // BLOCK_TOKENS
            and all(edge % BLOCK_TOKENS == 0 and 0 < edge <= blocks * BLOCK_TOKENS for edge in edges)
        )
        if not sound:
            raise self.damaged("its header contradicts itself")
        return SessionHeader(**values)


def open_session(path: Path) -> SessionFile:
    """Open a session file and read its header. Raises RequestError where it cannot be read, or is none."""
    try:
        file = open_plain_file(path)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    try:
        return SessionFile(path, file)
    except BaseException:
        file.close()
        raise


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**31 for value in values)
