from pathlib import Path

import pytest
from support.weight_files import write_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path)
