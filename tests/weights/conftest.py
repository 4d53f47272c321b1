import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from support import weight_files
from support.weight_files import FILE_BYTES, Gate

from pipeline.weights.reading import WAYS


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of three groups and a bit, that ends inside a block, and is long since written."""
    path = tmp_path / "weights"
    path.write_bytes(Random(0).randbytes(FILE_BYTES))
    os.utime(path, ns=(0, 0))
    return path


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
