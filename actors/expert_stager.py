"""Makes an expert in host memory ready for DMA, as the stager of weights does.

Takes:  messages in a host slot, whose bytes may still be on their way from the disk.
Gives:  the same messages once their bytes have landed.
Holds:  nothing of its own; the slot travels with the message.
Fails:  when the read that it waits for failed; the error is the reader's.
"""

from actors.pinned_stager import PinnedStager


class ExpertStager(PinnedStager):
    """What was kept in host memory has landed before; it comes first, so it waits for no read."""
