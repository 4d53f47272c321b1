"""A model over several devices says what it says on one, bit for bit, however its layers are dealt."""

import asyncio
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support import tiny_models
from support.cases import EVERYTHING, in_turn
from support.family_checkpoints import family_checkpoint
from support.family_models import CASES
from support.fitting_settings import fitting

from actors.core.budget import Slot
from actors.core.message import Message
from actors.core.ports import Copy
from actors.core.stage import Stage
from pipeline import ActorFailed, ConfigError, Model, Output
from pipeline.config import Config
from pipeline.devices import cpu
from pipeline.devices.memory import Memory
from pipeline.engine.policies import POLICIES
from pipeline.generation.build import build
from pipeline.generation.micro_batches import MicroBatch
from pipeline.generation.pass_work import PassWork
from pipeline.models.model_config import read_config
from pipeline.reading.checksums import Checking

STEPS = 12 if EVERYTHING else 6
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
MOVES = {"residency": False, "gpu_groups": 2, "gpu_experts": 3, "host_experts": 5, "max_tokens_per_pass": 29}
WAYS: dict[str, dict[str, Any]] = {
    "2 cpu, all stays": {"devices": ["cpu"] * 2},
    "3 cpu-copy, all moves": {"devices": ["cpu-copy"] * 3, **MOVES},
    "2 cpu-copy, all moves": {"devices": ["cpu-copy"] * 2, **MOVES},
    "3 cpu, all moves": {"devices": ["cpu"] * 3, **MOVES},
}
FAMILIES = [*CASES, *tiny_models.VARIANTS]
FEW = ["gemma3", "gpt_oss", "qwen3_next", "glm_moe_dsa", "deepseek_v3 with experts", "llama_tied"]
"""With windows, experts, recurrent layers, layers that need the one before, latents, and one matrix for both ends."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, made when it is asked for."""
    return tmp_path_factory.mktemp("families")


async def generated(folder: Path, **settings: Any) -> Output:
    async with Model.open(folder, **settings) as model:
        return await model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)


@functools.cache
def alone(folder: Path) -> Output:
    return asyncio.run(generated(folder, device="cpu"))


@pytest.mark.parametrize(("name", "way"), in_turn(FAMILIES if EVERYTHING else FEW, [*WAYS]))
def test_bits_are_those_of_one_device(name: str, way: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", 0.0)  # layers that move are dealt in turn
    folder = family_checkpoint(folders, name)
    settings = fitting(folder, WAYS[way])
    model = read_config(folder)
    devices = settings["devices"][: model.layers - len(model.joined_layers)]
    assert asyncio.run(generated(folder, **{**settings, "devices": devices})) == alone(folder)


LAYERS = 12
PROMPTS = [PROMPT, PROMPT[:9], PROMPT[3:38]]
ARGUMENTS: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "logprobs": 2}
TWO: dict[str, Any] = {"devices": ["cpu-copy"] * 2, "max_tokens_per_pass": 24, "max_requests": 4}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


@pytest.fixture(params=[0.0, 1.0], ids=["in turn", "contiguous"])
def dealt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Layers that move are dealt in turn where hops cost nothing, and in one run each where they cost a second."""
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", request.param)
    return "contiguous" if request.param else "in turn"


async def answers(model: Model) -> list[Output]:
    return list(await asyncio.gather(*(model.generate(prompt, **ARGUMENTS) for prompt in PROMPTS)))


@functools.cache
def of_one_device(folder: Path) -> list[Output]:
    async def ask() -> list[Output]:
        async with Model.open(folder, device="cpu") as model:
            return await answers(model)

    return asyncio.run(ask())


def room_for_kv(checkpoint: Path, folder: Path, device_layers: int, host_layers: int) -> dict[str, Any]:
    """Settings with which each section has room for so many layers' KV blocks in each place; others go to the disk."""
    settings = {**TWO, "residency": False, "context_tokens": 64, "kv_tokens": 12_800}
    sections = build(checkpoint, Config(**settings)).sections
    most = {"device": 0, "host": 0}
    for section in sections:
        section.device.free()
        layout = next(iter(section.cache.memory.layouts.values()))
        for place, layers in (("device", device_layers), ("host", host_layers)):
            held = [one for one in section.plan.holdings if one.place == place]
            fixed = [one.nbytes for one in held if not any(name in one.holder for name in layout.contents)]
            most[place] = max(most[place], sum(fixed) + layers * layout.layer_bytes)
    return {**settings, "gpu_memory": most["device"], "host_memory": len(sections) * most["host"], "kv_disk": folder}


@pytest.mark.usefixtures("nothing_was_there_before", "dealt")
def test_kv_blocks_live_in_all_places(deep: Path, tmp_path: Path) -> None:
    expected = of_one_device(deep)

    async def ask() -> None:
        async with Model.open(deep, **room_for_kv(deep, tmp_path, device_layers=4, host_layers=4)) as model:
            for section in model.runtime.sections:
                placement = section.cache.memory.placement
                assert placement.device, placement
                assert placement.host, placement
                assert placement.disk, placement
            assert await answers(model) == expected
            blocks = model.statistics().kv_blocks
            assert min(blocks.bytes_h2d, blocks.bytes_d2h, blocks.bytes_read, blocks.bytes_written) > 0
            assert sum(place.layers for place in blocks.places.values()) == LAYERS
            assert blocks.used == 0

    asyncio.run(ask())


@pytest.mark.parametrize("layer", [0, 5, LAYERS - 1])
async def test_a_failure_names_the_device_and_the_first_group_that_failed(
    layer: int, dealt: str, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {layer}
    ffn = PassWork.ffn

    def fails(self: PassWork, message: Message[Slot], part: MicroBatch) -> None:
        if message.layer in broken:
            raise ValueError("the kernel failed")
        ffn(self, message, part)

    monkeypatch.setattr(PassWork, "ffn", fails)
    async with asyncio.timeout(60), Model.open(deep, **TWO, residency=False) as model:
        owners = [one.drawn.part.layers for one in model.runtime.sections]
        assert (len(model.runtime.sections[1].section.hops) > 1) == (dealt == "in turn")
        number = next(number for number, layers in enumerate(owners) if layer in layers)
        told = f"compute_scheduler {number} on cpu failed at layer {layer} group 'ffn': ValueError: the kernel failed"
        for _ in range(2):
            found = await asyncio.gather(
                *(model.generate(prompt, **ARGUMENTS) for prompt in PROMPTS), return_exceptions=True
            )
            assert [str(one) for one in found] == [told] * len(PROMPTS)
        broken.clear()
        assert await answers(model) == await asyncio.to_thread(of_one_device, deep)
        assert model.statistics().kv_blocks.used == 0


async def test_a_failed_embedding_names_its_device(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(60), Model.open(deep, **TWO) as model:
        monkeypatch.setattr("pipeline.generation.pass_work.rotary", lambda *_: 1 / 0)
        with pytest.raises(ActorFailed, match=r"^compute_scheduler 0 on cpu failed at layer -1 group 'embed'"):
            await model.generate(PROMPT, **ARGUMENTS)


async def test_who_leaves_at_any_moment_disturbs_nobody(dealt: str, deep: Path) -> None:
    expected = (await asyncio.to_thread(of_one_device, deep))[0]
    async with asyncio.timeout(120), Model.open(deep, **TWO, residency=False) as model:
        for turns in range(0, 400, 3 if EVERYTHING else 29):
            leaving = [asyncio.create_task(model.generate(prompt, **ARGUMENTS)) for prompt in PROMPTS[1:]]
            staying = asyncio.create_task(model.generate(PROMPT, **ARGUMENTS)) if turns % 2 else None
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            if staying is not None:
                assert await staying == expected
        assert await model.generate(PROMPT, **ARGUMENTS) == expected
        assert model.statistics().requests.running == model.statistics().kv_blocks.used == 0


@pytest.mark.parametrize("name", ["qwen3_next", "llama_tied"])
@pytest.mark.usefixtures("dealt")
def test_a_conversation_goes_on_over_another_number_of_devices(name: str, folders: Path, tmp_path: Path) -> None:
    folder, prompt = family_checkpoint(folders, name), [*PROMPT, *PROMPT[::-1]]
    one, two = {"device": "cpu"}, {"devices": ["cpu-copy"] * 2, "residency": False}

    async def saved(settings: dict[str, Any], path: Path) -> tuple[list[int], Output]:
        async with Model.open(folder, **settings) as model:
            output = await model.generate(prompt, cache_scope="a", **ARGUMENTS)
            ids = [*prompt, *output.token_ids]
            assert await model.save_session(path, ids, cache_scope="a") == 80
            return ids, await model.generate([*ids, 7], cache_scope="a", **ARGUMENTS)

    async def loaded(settings: dict[str, Any], path: Path, ids: list[int]) -> Output:
        async with Model.open(folder, **settings) as model:
            assert (await model.load_session(path, cache_scope="b")).cached_tokens == 80
            return await model.generate([*ids, 7], cache_scope="b", **ARGUMENTS)

    for number, (before, after) in enumerate([(one, two), (two, one)]):
        path = tmp_path / f"{number}.session"
        ids, expected = asyncio.run(saved(before, path))
        assert expected.cached_tokens == 80
        assert asyncio.run(loaded(after, path, ids)) == expected


@pytest.mark.parametrize("policy", POLICIES if EVERYTHING else ["stage1", "stage3"])
@pytest.mark.usefixtures("dealt")
def test_policies_and_scores_of_prompts_are_those_of_one_device(policy: str, deep: Path) -> None:
    async def ask(**settings: Any) -> list[Output]:
        async with Model.open(deep, **settings) as model:
            calls = (model.generate(prompt, prompt_logprobs=2, **ARGUMENTS) for prompt in PROMPTS)
            return list(await asyncio.gather(*calls))

    expected = asyncio.run(ask(device="cpu"))
    for more in ({}, {"residency": False}) if EVERYTHING else ({"residency": False},):
        assert asyncio.run(ask(**TWO, policy=policy, **more)) == expected


class Passing(Stage):
    """Notes which groups each of its instances has seen."""

    seen: ClassVar[dict[str, set[int]]] = {}

    async def handle(self, message: Message[Any]) -> Message[Any]:
        self.seen.setdefault(self.name, set()).add(message.layer)
        return message


def test_each_line_has_a_stage_of_its_own(deep: Path) -> None:
    async def ask() -> list[frozenset[int]]:
        async with Model.open(deep, **TWO, insert={"disk_reader": [Passing]}) as model:
            assert await answers(model) == expected
            assert "passing 1" in model.statistics().channels
            return [one.drawn.part.layers for one in model.runtime.sections]

    expected = of_one_device(deep)
    layers = asyncio.run(ask())
    assert Passing.seen == {f"passing {number}": {*own} for number, own in enumerate(layers)}
    with pytest.raises(ConfigError, match="several devices need the class"):
        Model.open(deep, **TWO, insert={"disk_reader": [Passing()]})


def test_checksums_are_chosen_by_what_all_devices_read(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def choose(said: bool | None, shares_cores: bool, moving_bytes: int, rate: float | None) -> Checking:
        told.append(moving_bytes)
        return Checking(False, "not here")

    monkeypatch.setattr("pipeline.engine.shared_source.choose_checking", choose)
    for devices in (["cpu"], ["cpu"] * 3):
        for section in build(deep, Config(devices=devices, residency=False)).sections:
            section.device.free()
    assert told[0] == told[1] > 0


def test_what_looks_at_one_line_refuses_several(deep: Path) -> None:
    async def ask() -> None:
        async with Model.open(deep, **TWO) as model:
            with pytest.raises(ConfigError, match="devices: this looks at one line, have several: cpu, cpu; open"):
                _ = model.runtime.catalog

    asyncio.run(ask())


def test_a_pass_uses_the_links_of_all_devices_at_once(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a single request: what moves comes over two links, each of which copies at a rate of its own."""
    bytes_per_second, least_bytes, new_tokens = 3e6, 20_000, 2
    monkeypatch.setattr("pipeline.generation.drawn_sections.HOP_SECONDS", 0.0)
    copy_bytes = cpu.copy_bytes

    def copy_at_rate(source: Memory, target: Memory, copies: Sequence[Copy]) -> None:
        copy_bytes(source, target, copies)
        if (nbytes := sum(copy.length for copy in copies)) > least_bytes:  # weights, and not numbers of a pass
            time.sleep(nbytes / bytes_per_second)

    monkeypatch.setattr(cpu, "copy_bytes", copy_at_rate)

    async def seconds(**settings: Any) -> float:
        async with Model.open(deep, residency=False, **settings) as model:
            await model.generate([5, 6], max_new_tokens=1, ignore_eos=True)
            began = time.perf_counter()
            await model.generate([5, 6], max_new_tokens=new_tokens, ignore_eos=True)
            took, counted = time.perf_counter() - began, model.statistics()
            assert counted.bytes_uploaded >= counted.passes * counted.weights.stored_bytes, "all comes in each pass"
            return took

    one, two = asyncio.run(seconds(device="cpu-copy")), asyncio.run(seconds(devices=["cpu-copy"] * 2))
    assert two < 0.75 * one, (one, two)
