"""A sequence, and its part in a pass, as this room sees them: protocols that `generation` implements."""

from array import array
from collections.abc import Sequence
from typing import Protocol

from pipeline.state.state_slots import HeldState


class CachedSequence(Protocol):
    """A sequence whose keys and values are cached in `blocks`, those of its first `cached_tokens`.

    `digests` are those of its first full blocks; what is cached was rotated for `rope_length`. Recurrent layers have
    its state behind those tokens in the slots of `held_state`.
    """

    prompt_ids: "array[int]"
    blocks: list[int]
    cached_tokens: int
    digests: list[bytes]
    rope_length: int
    held_state: HeldState | None

    @property
    def scope(self) -> bytes | None:
        """Sequences of one scope share blocks; None shares none."""

    @property
    def computes_prompt(self) -> bool:
        """Whether it computes its prompt, though its blocks may be cached: others may use what it computes."""

    @property
    def most_tokens(self) -> int:
        """How many positions it can come to occupy."""

    @property
    def waiting_count(self) -> int:
        """How many tokens are not cached yet."""

    def tokens(self, begin: int, end: int) -> Sequence[int]:
        """The tokens at positions [begin, end), as far as they are known."""

    def fail(self, error: BaseException) -> None:
        """End it with an error."""


class CachedPiece(Protocol):
    """What one sequence brings to a pass: tokens at positions from `start` on."""

    @property
    def sequence(self) -> CachedSequence:
        """Whose tokens they are."""

    @property
    def start(self) -> int:
        """The position of the first; what lies before it is cached."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens."""

    @property
    def state_read(self) -> int:
        """The slot of the recurrent state that it begins with; -1 at position 0, or without recurrent layers."""

    @property
    def state_write(self) -> int:
        """The slot of the recurrent state behind its last token; -1 without recurrent layers."""

    @property
    def snapshots(self) -> Sequence[tuple[int, int]]:
        """The tokens, by their index in it, behind which the recurrent state is also put into a slot, and that slot."""
