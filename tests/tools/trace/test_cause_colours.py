"""Whatever the device waits for has a colour of its own, on a bright screen and on a dark one."""

import re

import pytest

from pipeline.tools.trace import report
from pipeline.tools.trace.gaps import CAUSES
from pipeline.tools.trace.lane_rows import cause_style

STYLE = report.STYLE.read_text()
PALETTES = re.findall(r":root \{([^}]*--disk:[^}]*)\}", STYLE)


def variable_of(style: str) -> str:
    """The one variable that `--cause` is set to by a style."""
    (variable,) = re.findall(rf"(?<![\w.-])\.{style} \{{ --cause: var\((--[\w-]+)\); \}}", STYLE)
    return str(variable)


def test_every_cause_has_a_style_and_every_style_a_cause() -> None:
    styles = [cause_style(cause) for cause in CAUSES]
    assert len(set(styles)) == len(CAUSES)
    assert set(re.findall(r"\.(cause-[\w-]+)", STYLE)) == set(styles)
    assert len({variable_of(style) for style in styles}) == len(CAUSES)


@pytest.mark.parametrize("palette", PALETTES, ids=["bright", "dark"])
def test_no_two_causes_share_a_colour(palette: str) -> None:
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", palette + ";"))
    of_causes = [colours[variable_of(cause_style(cause))] for cause in CAUSES]
    assert len(set(of_causes)) == len(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_hatched_with_its_own_pattern(cause: str) -> None:
    style = cause_style(cause)
    assert re.findall(rf"svg \.hatch\.{style} \{{ fill: url\(#([\w-]+)\); \}}", STYLE) == [style]
