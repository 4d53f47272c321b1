"""The sections of a model on a cluster, all in this process: what travels between nodes is pickled."""

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.cluster.cluster_runtime import ClusterRuntime
from pipeline.cluster.open_on_cluster import open_sections
from pipeline.cluster.orders import PassOrder, SectionReport
from pipeline.cluster.ray_sections import first_failure
from pipeline.cluster.section_calls import NodeTrace, Offer, Opened, SectionPlan, Survey, layers_of
from pipeline.cluster.section_node import SectionNode
from pipeline.cluster.surveys import offer, survey
from pipeline.config import Config


def sent(value: Any) -> Any:
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value, protocol=5))


class LocalSections:
    """See `Sections`. `hops` counts what was handed from section to section.

    The clock of a section may be `ahead_seconds`, as on another machine.
    """

    def __init__(self, count: int, folder: Path, settings: Config) -> None:
        self.folder, self.settings = folder, settings
        self.plan = SectionPlan((), 0, 0, ())
        self.nodes: list[SectionNode | None] = [None] * count
        self.hops = 0
        self.ahead_seconds = [0.0] * count
        self.loop = asyncio.get_running_loop()

    async def survey(self) -> list[Survey]:
        told = await asyncio.to_thread(survey, self.folder, self.settings)
        return [Survey(f"here {number}", *told) for number in range(len(self.nodes))]

    async def offer(self, owners: Sequence[int], *, fitting: bool) -> list[Offer]:
        each = [layers_of(number, owners) for number in range(len(self.nodes))]
        return [offer(self.folder, self.settings, layers, fitting=fitting) for layers in each]

    def agree(self, owners: Sequence[int], kv_tokens: int, pass_tokens: int) -> None:
        self.plan = SectionPlan(tuple(owners), kv_tokens, pass_tokens, ())

    async def begin(self) -> list[Opened]:
        for number, node in enumerate(self.nodes):
            if node is None:
                name = f"here {number}"
                told = self.settings, name, number, self.plan
                self.nodes[number] = await SectionNode.open(self.folder, *told, self.hand_on)
        for node in self.nodes:
            await node.start()
        return [sent(node.opened()) for node in self.nodes]

    async def hand_on(self, section: int, number: int, layer: int, rows: Sequence[Any]) -> None:
        self.hops += 1
        await asyncio.sleep(0)
        self.nodes[section].passes.arrived(number, layer, sent(rows))

    async def compute(self, order: PassOrder) -> list[SectionReport]:
        return sent(await first_failure([node.compute(sent(order)) for node in self.nodes]))

    def withdraw(self, numbers: Sequence[int]) -> None:
        for node in self.nodes:
            node.sequences.withdraw(numbers)

    async def clock(self, number: int) -> float:
        return self.nodes[number].clock() + self.ahead_seconds[number]

    async def record(self, number: int) -> None:
        self.nodes[number].record()

    async def recorded(self, number: int) -> NodeTrace:
        told, ahead = sent(self.nodes[number].recorded()), self.ahead_seconds[number]
        spans = tuple(one._replace(started=one.started + ahead, ended=one.ended + ahead) for one in told.spans)
        return replace(told, spans=spans, counts=tuple(one._replace(at=one.at + ahead) for one in told.counts))

    async def watch(self) -> None:
        await asyncio.Event().wait()

    def name(self, number: int) -> str:
        return f"section {number}"

    async def aclose(self) -> None:
        for node in self.nodes:
            if node is not None:  # a model is closed on another loop
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(node.aclose(), self.loop))


async def open_here(folder: Path, count: int, **settings: Any) -> Model:
    """A model cut over so many sections, each of which is a node of its own."""
    config = Config.from_arguments(settings)
    sections = LocalSections(count, folder, config)
    opened = await open_sections(sections, folder)
    config = replace(config, cluster="here")
    return Model(ClusterRuntime(folder, config, sections, opened, joined=False), {})
