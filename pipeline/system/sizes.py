"""Sizes in bytes, as people write and read them."""

import re
from decimal import Decimal
from numbers import Integral

from pipeline.errors import ConfigError, shown

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("", 1000), ("B", 1000), ("I", 1024), ("IB", 1024))
}
FEWEST_BYTES = 4096
"""A smaller number without a unit lacks one: no setting works with so little."""
SIZE = re.compile(r"\s*([0-9]{0,20}\.?[0-9]{1,20})\s*(%|[KMGT]i?B?|B|)\s*", re.IGNORECASE)


def human_bytes(nbytes: float) -> str:
    """A size as people read it: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def parse_bytes(setting: str, value: object, whole: int | None = None) -> int:
    """Bytes from a number of them, or from a text: "8GiB", "8 GB", "1.5g" or "8000000000".

    The B may be left out: G is 1000**3, and Gi 1024**3. Of a `whole`, "80%" is a share. Raises ConfigError.
    """
    number, unit = _number_and_unit(value)
    if number <= 0 or (unit == "%" and (whole is None or number > 100)):
        share = "" if whole is None else ', or a share as "80%"'
        raise ConfigError(f'{setting}: need bytes, or a size as "10GiB" or "1.8GB"{share}; have {shown(value)}')
    if not unit and number < FEWEST_BYTES:
        fault = f"a number without a unit is in bytes, and {shown(value)} are too few"
        raise ConfigError(f'{setting}: {fault}; add the unit, as in "8GB"')
    return int(number * (whole or 0) / 100) if unit == "%" else int(number * UNITS[unit])


def _number_and_unit(value: object) -> tuple[Decimal, str]:
    """0 where it is neither a number of bytes nor a size."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return Decimal(int(value)), ""
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    return (Decimal(found[1]), found[2].upper()) if found else (Decimal(0), "")
