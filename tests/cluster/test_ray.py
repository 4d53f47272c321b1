"""A model on the nodes of a Ray cluster: processes of their own, which may die."""

import asyncio
import contextlib
import gc
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import remove_placement_group
from support import tiny_models
from support.cases import EVERYTHING
from support.family_models import CASES

from pipeline import Model
from pipeline.cluster.cluster_sections import SectionDied
from pipeline.cluster.placing import place
from pipeline.cluster.section_calls import NotBegun
from pipeline.models.model_config import read_config

STORE_BYTES = 80 << 20
PROMPT = [*tiny_models.PROMPT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "model"
    tiny_models.save("llama_gqa_llama3", path)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes on this machine, or four, each with one CPU more than a section needs."""
    node = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(3 if EVERYTHING else 1):
        cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
async def model(anyio_backend: object, folder: Path, address: str) -> AsyncIterator[Model]:
    async with Model.open(folder, cluster=address, sections=2, dtype="float32", kv_tokens=512) as opened:
        yield opened


async def answer(model: Model, index: int = 0) -> tuple[int, ...]:
    return tuple((await model.generate(PROMPT[index:], max_new_tokens=8, ignore_eos=True)).token_ids)


async def tasks_of(model: Model, section: int) -> int:
    """How many tasks there are in the process of a section, calls to it among them."""

    def count(actor: object) -> int:
        return sum(isinstance(one, asyncio.Task) and not one.done() for one in gc.get_objects())

    return await model.runtime.remote._actors[section].__ray_call__.remote(count)


@pytest.mark.usefixtures("address")
async def test_there_are_at_most_as_many_sections_as_layers() -> None:
    placement = await place(None, "cpu", most=1)
    assert placement.sections == 1
    assert re.fullmatch(r"[0-9.]+ \([0-9a-f]{8}\)", placement.nodes[0])
    remove_placement_group(placement.group)


async def test_a_section_may_die_and_requests_are_told(folder: Path, model: Model, tmp_path: Path) -> None:
    """Tokens are those of one process. Those that run when a section is killed get one error, which names it."""
    async with Model.open(folder, device="cpu", dtype="float32") as alone:
        expected = [await answer(alone, index) for index in range(3)]
    started = time.perf_counter()
    async with model.recording() as trace:
        assert await asyncio.gather(*(answer(model, index) for index in range(3))) == expected
    tasks = await tasks_of(model, 0)
    assert {span.actor for span in trace.spans} >= {"compute_scheduler 0", "compute_scheduler 1"}
    assert all(started - 0.1 < span.ended < time.perf_counter() for span in trace.spans)
    long = {"max_new_tokens": 200, "ignore_eos": True}
    recording = contextlib.AsyncExitStack()
    trace = await recording.enter_async_context(model.recording())
    running = [asyncio.create_task(model.generate(PROMPT, **long)) for _ in range(3)]
    await asyncio.sleep(0.3)
    process = model.runtime.opened[1].process
    os.kill(process, signal.SIGKILL)
    *failures, waited = await asyncio.gather(*running, return_exceptions=True)
    with pytest.raises((SectionDied, NotBegun), match=r"section 1 \(layer"):
        await recording.aclose()
    assert {span.actor[-1] for span in trace.spans} == {"0"}, "what the other has recorded is gone with its process"
    assert {type(failure) for failure in failures} == {SectionDied}
    for said in ("section 1 (layer", "and the head) on node ", "failed: ConnectionError: its process has ended"):
        assert said in str(failures[0])
    assert str(failures[0]) == str(failures[1])
    assert len(waited.token_ids) == 200, "there was KV room for two, so it had not begun"
    assert await answer(model, 1) == expected[1]
    assert model.runtime.opened[1].process != process
    assert model.runtime.admission.batcher.pool.used == 0
    async with asyncio.timeout(5):
        while await tasks_of(model, 0) > tasks:
            await asyncio.sleep(0.02)


@pytest.mark.skipif(not EVERYTHING, reason="each opens several processes")
@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "qwen3_next", "deepseek_v3", "glm4"])
async def test_families_say_on_four_nodes_what_they_say_on_one(name: str, address: str, tmp_path: Path) -> None:
    tiny_models.save_model(tiny_models.randomised(CASES[name].config(), seed=1), tmp_path, 1)
    count = min(4, read_config(tmp_path).layers)
    async with Model.open(tmp_path, device="cpu") as alone:
        expected = [await answer(alone, index) for index in range(3)]
    async with Model.open(tmp_path, cluster=address, sections=count) as model:
        assert await asyncio.gather(*(answer(model, index) for index in range(3))) == expected
        assert len({one.node for one in model.statistics().sections}) == count
