from collections.abc import Iterator
from pathlib import Path

import pytest
from support import weight_files
from support.weight_files import Gate, write_weights

from pipeline.reading.reading import WAYS


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How sources read that the test opens."""
    monkeypatch.setattr(weight_files, "way", request.param)
    return str(request.param)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    gate.install(monkeypatch)
    yield gate
    gate.open.set()
