"""What belongs to one line, for those who look at a model that is open on one device."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from actors.core.line import Line
from actors.core.ports import PrefetchPolicy
from actors.core.trace import Trace
from pipeline.devices.port import Device
from pipeline.engine.expert_line import ExpertLine
from pipeline.engine.residency import Residency
from pipeline.engine.wiring import Wired
from pipeline.errors import ConfigError
from pipeline.generation.section import Section
from pipeline.groups.catalog import WeightCatalog
from pipeline.reading.embedding import EmbeddingRows
from pipeline.state.kv import KeyValueCache
from pipeline.system.memory_plan import MemoryPlan

if TYPE_CHECKING:
    from pipeline.generation.section_runtime import SectionRuntime


class OneSection:
    """Each property is that of the only one of `sections`. Raises ConfigError where there are several."""

    sections: "tuple[SectionRuntime, ...]"

    @property
    def only(self) -> "SectionRuntime":
        """The only section."""
        if len(self.sections) > 1:
            devices = ", ".join(str(one.device.torch_device) for one in self.sections)
            raise ConfigError(f"devices: this looks at one line, have several: {devices}; open the model on one device")
        return self.sections[0]

    @property
    def trace(self) -> Trace:
        """What the lines of all sections record into."""
        return self.sections[0].trace

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Let the trace, which is cleared, record what happens within."""
        self.trace.clear()
        self.trace.recording = True
        try:
            yield
        finally:
            self.trace.recording = False

    @property
    def section(self) -> Section:
        """The program of the line."""
        return self.only.section

    @property
    def device(self) -> Device:
        """What computes."""
        return self.only.device

    @property
    def catalog(self) -> WeightCatalog:
        """The weight groups."""
        return self.only.catalog

    @property
    def cache(self) -> KeyValueCache:
        """KV blocks and recurrent states."""
        return self.only.cache

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan."""
        return self.only.plan

    @property
    def residency(self) -> Residency:
        """The groups that stay."""
        return self.only.residency

    @property
    def policy(self) -> PrefetchPolicy:
        """What is prefetched when."""
        return self.only.policy

    @property
    def wired(self) -> Wired:
        """All lines of the device."""
        return self.only.wired

    @property
    def line(self) -> Line:
        """That of the weights."""
        return self.only.line

    @property
    def expert_line(self) -> ExpertLine | None:
        """That of the experts, if there are some."""
        return self.only.expert_line

    @property
    def embedding(self) -> EmbeddingRows:
        """The rows of the embedding."""
        return embedding_of(self.only)


def embedding_of(section: "SectionRuntime") -> EmbeddingRows:
    """Those of the section that computes the first layer."""
    if section.embedding is None:
        raise LookupError("only the section of the first layer has the embedding")
    return section.embedding
