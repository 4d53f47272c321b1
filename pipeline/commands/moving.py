"""What commands say where no weight group moved, so that nobody takes what was not there for fast."""

from collections.abc import Mapping


def nothing_moved(moving: Mapping[str, int], unsaid: str, some: str = "a smaller --host-memory or --gpu-memory") -> str:
    """A sentence on the rows in which no group moved; empty where groups moved in all.

    `moving` are the weight groups that moved in every pass, by row; `unsaid` is what the measurement then cannot tell,
    and `some` the option that lets some of them move.
    """
    still = list(dict.fromkeys(row for row, count in moving.items() if not count))
    if not still:
        return ""
    return (
        f"Nothing moved in {', '.join(still)}: all weight groups stayed in memory, so {unsaid}. "
        f"--no-residency lets all of them move, {some} some."
    )
