"""How long passes waited for each section of a model, while none of its devices computed."""

from collections.abc import Sequence

from actors.core.event import Event


class SectionWaits:
    """Adds up what each pass has waited for a section: for its weights, and for hidden states on their way to it.

    A section that is slower than the others has the larger share, whatever else its actors do.
    """

    def __init__(self, sections: int) -> None:
        self.seconds = [0.0] * sections
        self._launched: list[tuple[int, Sequence[Event]]] = []
        self._computed_until = 0.0

    def begin(self, at: float) -> None:
        """Let a pass begin, in clock seconds."""
        self._computed_until = at

    def left(self, section: int, ran: Sequence[Event]) -> None:
        """Take note of what a section has launched, in the order of the pass."""
        self._launched.append((section, ran))

    def ended(self) -> None:
        """Add up the pass, of which all that was launched has ended."""
        launched, self._launched = self._launched, []
        for section, ran in launched:
            for span in (event.span for event in ran):
                if span is not None:
                    self.seconds[section] += max(0.0, span[0] - self._computed_until)
                    self._computed_until = max(self._computed_until, span[1])
