"""Measuring takes seconds and does not depend on the loop, so it is tested on one: that of the command line."""

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})
