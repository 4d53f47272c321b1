"""What the tests of this folder share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def cuda_has_begun() -> None:
    """CUDA takes a second to begin, with the interpreter lock held, and no event loop of a test may stand that long."""
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
