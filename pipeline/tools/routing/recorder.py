"""Collects what routers choose while a model runs."""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import ConfigError
from pipeline.tools.routing.recorded_routing import RecordedRouting, RoutedModel


class Recorder:
    """A recorder as a program calls it, for a model of which `layers` have experts; see `RoutedModel` for the rest.

    A pass that ended before its last layer with experts is left out.
    """

    def __init__(self, name: str, digest: str, layers: Sequence[int], experts: int, expert_bytes: int) -> None:
        self._model = (name, digest, tuple(layers), experts, expert_bytes)
        self._layers = layers
        self._from_prompt: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._pass: dict[int, np.ndarray] = {}

    def begin(self, from_prompt: Sequence[bool]) -> None:
        """Take the rows of a pass."""
        self._rows = np.asarray(from_prompt, np.uint8)
        self._pass.clear()

    def chosen(self, layer: int, ids_TK: np.ndarray) -> None:
        """Take what the rows use in a layer; with the last layer the pass counts."""
        self._pass[layer] = np.array(ids_TK, np.uint16)
        if len(self._pass) == len(self._layers):
            self._from_prompt.append(self._rows)
            self._ids.append(np.stack([self._pass[one] for one in self._layers], axis=1))

    def recorded(self) -> RecordedRouting:
        """What was chosen until now. Raises ConfigError where no pass has ended."""
        if not self._ids:
            raise ConfigError("no pass went through all layers that have experts; ask for at least one token")
        rows, ids = np.array([len(one) for one in self._ids], np.int32), np.concatenate(self._ids)
        name, digest, layers, experts, expert_bytes = self._model
        model = RoutedModel(name, digest, layers, experts, ids.shape[2], expert_bytes)
        return RecordedRouting(model, rows, np.concatenate(self._from_prompt), ids)
