"""Python looks for unused cycles again and again while objects are made, which doubles the time where these stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collected_later() -> Iterator[None]:
    """No cycles are looked for meanwhile: many objects are made that stay, and few cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
