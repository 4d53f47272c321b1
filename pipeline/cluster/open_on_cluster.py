"""The page on which a model on a cluster is put together: nodes are compared, layers dealt, and sections opened."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.cluster.cluster_runtime import ClusterRuntime
from pipeline.cluster.cluster_sections import SectionDied, Sections
from pipeline.cluster.placing import join_cluster, leave_cluster, place
from pipeline.cluster.ray_sections import RaySections
from pipeline.cluster.section_calls import Opened
from pipeline.cluster.surveys import check_alike
from pipeline.config import Config
from pipeline.engine.dealing import Share, deal
from pipeline.errors import ConfigError, ResourceError
from pipeline.models.model_config import read_config

logger = logging.getLogger("penstock")
HOP_SECONDS = 2e-3
"""From node to node, with the rows of a few requests (tests/records/2026-11-29_ray.md)."""


DIED_MEANWHILE = (
    "that was while the model was opened: `ray status` says which nodes are there, and the logs of that node, below "
    "/tmp/ray/session_latest/logs, what has ended the process, such as too little memory; then open the model again"
)


async def open_on_cluster(folder: Path, settings: Config) -> ClusterRuntime:
    """Open a section of the folder on each node, or as many as the settings say.

    Raises PenstockError where one cannot be opened, ResourceError where its process ends meanwhile.
    """
    model = read_config(folder)
    most = model.layers - len(model.joined_layers)
    if settings.sections is not None and settings.sections > most:
        each = "runs of layers that need each other" if model.joined_layers else "layers"
        raise ConfigError(f"sections: need at most one for each of {most} {each}, have {settings.sections}")
    joined = await join_cluster(settings.cluster or "auto")
    async with contextlib.AsyncExitStack() as undone:
        undone.push_async_callback(leave_cluster, joined)
        of_node = replace(settings, cluster=None, sections=None)
        sections = RaySections(await place(settings.sections, settings.device, most), folder, of_node)
        undone.push_async_callback(sections.aclose)
        try:
            opened = await open_sections(sections, folder)
        except SectionDied as error:
            raise ResourceError(f"{error}; {DIED_MEANWHILE}") from error
        undone.pop_all()
    return ClusterRuntime(folder, settings, sections, opened, joined=joined)


async def open_sections(sections: Sections, folder: Path) -> Sequence[Opened]:
    """First with layers dealt evenly, whose plans tell the room of each node, then as these have room."""
    surveys = await sections.survey()
    check_alike(surveys, folder)
    layer_bytes, joined = surveys[0].layer_bytes, read_config(folder).joined_layers
    evenly = deal(layer_bytes, [Share(0, 1.0, 2 * max(layer_bytes))] * len(surveys), joined=joined)
    shares = [one.share for one in await sections.offer(evenly, fitting=False)]
    owners = deal(layer_bytes, shares, HOP_SECONDS, joined=joined)
    offers = await sections.offer(owners, fitting=True)
    sections.agree(owners, min(one.kv_tokens for one in offers), min(one.pass_tokens for one in offers))
    opened = await sections.begin()
    for number in range(len(opened)):
        logger.info("%s", sections.name(number))
    return opened
