"""Who is told what routers choose, while a model runs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class RoutingRecorder(Protocol):
    """Is told of every pass, on the event loop, once the host knows which experts its rows use."""

    def begin(self, from_prompt: Sequence[bool]) -> None:
        """A pass of so many rows begins; which of them are of prompts, and not of tokens that decoding has chosen."""

    def chosen(self, layer: int, ids_TK: np.ndarray) -> None:
        """The experts of all its rows in a layer that has some, int [T, K]; layers come in order. To be copied."""
