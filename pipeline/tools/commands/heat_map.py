"""A heat map as text: how long a pass takes, by budget and one setting more."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.system.sizes import human_bytes

SHADES = ((1.01, "░"), (1.05, "▒"), (1.25, "▓"), (float("inf"), "█"))
"""Up to which time, relative to the best, a cell has which shade."""
CHOSEN = "*"
LEGEND = "░ within 1 % of the best   ▒ 5 %   ▓ 25 %   █ slower   * chosen"


def heat_map(
    seconds: Mapping[tuple[int, int], float],
    window_bytes: Mapping[int, int],
    budgets: Sequence[int],
    columns: Mapping[int, str],
    chosen: tuple[int, int],
) -> str:
    """One line per budget, times relative to the best, and what the budget costs.

    `columns` are the values of the other setting, with their headings; `seconds` and `chosen` are by budget and value.
    A budget without times did not fit into memory.
    """
    best = min(seconds.values())
    fit = [budget for budget in budgets if budget in window_bytes]
    rows = {one: [_cell(seconds[one, value] / best, (one, value) == chosen) for value in columns] for one in fit}
    width = 2 + max(len(cell) for row in (columns.values(), *rows.values()) for cell in row)
    lines = [_line("gpu_groups", columns.values(), "window", width)]
    for budget in budgets:
        if budget in rows:
            lines.append(_line(budget, rows[budget], human_bytes(window_bytes[budget]), width))
        else:
            lines.append(f"{budget:10}  does not fit into memory")
    return "\n".join([*lines, LEGEND])


def _line(name: object, cells: Iterable[str], window: str, width: int) -> str:
    return f"{name:>10}  {''.join(cell.ljust(width) for cell in cells)}{window:>8}"


def _cell(ratio: float, is_chosen: bool) -> str:
    shade = next(shade for most, shade in SHADES if ratio <= most)
    return f"{ratio:.2f} {shade}{CHOSEN * is_chosen}"
