"""Sentences below a table whose figures do not tell what they seem to."""

from collections.abc import Mapping

BELOW = 0.95
"""A pass divided by its floor: below this it is no rounding."""


def with_remarks(table: str, *remarks: str) -> str:
    """The table, and those remarks that there are."""
    return "\n\n".join(filter(None, [table, *remarks]))


def counted(count: int, noun: str) -> str:
    """Return a number and its noun."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun[-1] == 's' else 's'}"


def beside_noise(effect: float, noise: float) -> str:
    """Say whether a difference is more than noise: the spreads of both sides, relative to their medians."""
    return f"{'more than' if effect > noise else 'which proves nothing beside'} the {noise:.1%} of both spreads"


def nothing_moved(moving: Mapping[str, int], unsaid: str, some: str = "a smaller --host-memory or --gpu-memory") -> str:
    """A sentence on the rows in which no group moved; empty where groups moved in all.

    `moving` are the weight groups that moved in every pass, by row; `unsaid` is what the measurement then cannot tell,
    and `some` the option that lets some of them move.
    """
    still = [row for row, count in moving.items() if not count]
    if not still:
        return ""
    why = f"all weight groups stayed in memory, so {unsaid}"
    return f"Nothing moved in {', '.join(still)}: {why}. --no-residency lets all of them move, {some} some."


def below_floor(ratios: Mapping[str, float]) -> str:
    """A sentence on the rows whose pass is faster than its floor, which cannot be; empty where there are none."""
    below = [row for row, ratio in ratios.items() if ratio < BELOW]
    if not below:
        return ""
    return (
        f"The pass of {', '.join(below)} is faster than its floor: beginning and ending one takes longer than so short "
        "a pass, or the machine had more to do while the floor was measured. That ratio tells nothing."
    )
