"""The few shapes that the charts are drawn with. Everything that people chose goes through `escape`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

WIDTH = 1160.0
LEFT, RIGHT = 176.0, 50.0
"""The widths that a chart leaves free beside its rows, for names and for numbers."""
CHARACTER_WIDTH = 6.2
NAME_CHARACTERS, SMALL_NAME_CHARACTERS = 22, 25
"""As much of a name as has room beside a row."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Time from left to right; labels count from `zero`."""

    zero: float
    started: float
    ended: float

    def x(self, at: float) -> float:
        """Return where a moment is drawn; outside the scale, at its edge."""
        share = (min(max(at, self.started), self.ended) - self.started) / max(self.ended - self.started, 1e-12)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> str:
    """A filled rectangle; `title` shows when the pointer rests on it."""
    shape = f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.1f}" height="{height:.1f}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def text(x: float, y: float, content: str, style: str) -> str:
    """A line of text; its style says which end or middle of it is at `x`."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def row_name(y: float, name: str, *, small: bool = False) -> str:
    """The name on the left of a row; when the pointer rests on a shortened one, all of it shows."""
    shown = shortened(name, SMALL_NAME_CHARACTERS if small else NAME_CHARACTERS)
    title = "" if shown == name else f"<title>{escape(name)}</title>"
    style = "name small" if small else "name"
    return f'<text class="{style}" x="{LEFT - 8:.1f}" y="{y:.1f}">{escape(shown)}{title}</text>'


def shortened(name: str, most: int = NAME_CHARACTERS) -> str:
    """A name with its middle left out where it is too long: names of one family often differ in their ends."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"


def line(x: float, top: float, bottom: float, style: str) -> str:
    """A vertical line."""
    return f'<path class="{style}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'


def area(points: Iterable[tuple[float, float]], base: float, style: str) -> str:
    """Draw the area between a line of points and the horizontal at `base`."""
    path = "".join(f"L{x:.1f} {y:.1f}" for x, y in points)
    if not path:
        return ""
    first, last = path[1:].split("L")[0].split()[0], path.rsplit("L", 1)[1].split()[0]
    return f'<path class="{style}" d="M{first} {base:.1f}{path}L{last} {base:.1f}Z"/>'


def steps(points: Iterable[tuple[float, float]], base: float, end: float, style: str) -> str:
    """Draw the area under a staircase that goes on to `end`."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    if corners:
        corners.append((end, corners[-1][1]))
    return area(corners, base, style)


def picture(height: float, parts: Iterable[str], label: str) -> str:
    """Put the parts into one picture, as wide as the page allows."""
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(part for part in parts if part)
        + "\n</svg>"
    )


def tick_seconds(seconds: float, most: int = 10) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that at most so many fit."""
    smallest = seconds / most
    power = 10.0 ** math.floor(math.log10(smallest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= smallest * 0.999)


def axis(scale: Scale, top: float, bottom: float) -> list[str]:
    """A grid behind the rows; under it milliseconds, or seconds where milliseconds would only be zeros."""
    step = tick_seconds(scale.ended - scale.started)
    unit, per_second = ("ms", 1000) if step < 1 else ("s", 1)
    digits = max(0, -math.floor(math.log10(step * per_second) + 1e-9))
    parts: list[str] = []
    first = math.ceil((scale.started - scale.zero) / step - 1e-9)
    last = math.floor((scale.ended - scale.zero) / step + 1e-9)
    for tick in range(first, last + 1):
        x = scale.x(scale.zero + tick * step)
        parts.append(line(x, top, bottom + 4, "grid"))
        parts.append(text(x, bottom + 17, f"{tick * step * per_second:,.{digits}f}", "tick"))
    return [*parts, text(WIDTH, bottom + 17, unit, "tick end")]
