"""Tables, as people read them."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

SEPARATOR = "  "
Row = TypeVar("Row")

Columns = Mapping[tuple[str, str], Sequence[str]]
"""By heading and unit, a cell for each row."""


def aligned(columns: Columns) -> str:
    """One line per row under two lines of headings; the first column to the left, the others to the right."""
    cells = [[*heading, *column] for heading, column in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    lines = []
    for first, *others in zip(*cells, strict=True):
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(SEPARATOR.join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def rows_aligned(rows: Sequence[Row], columns: Mapping[tuple[str, str], Callable[[Row], str]]) -> str:
    """The same of objects; by heading and unit, what makes the cell of one of them."""
    return aligned({heading: [cell(row) for row in rows] for heading, cell in columns.items()})


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print plain values as JSON."""
    json.dump(value, sys.stdout, indent=indent)
    print()
