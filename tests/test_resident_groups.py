"""Groups that stay: the same tokens, no byte moved twice, and everything that may go wrong beside them."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import cases, in_turn
from support.group_places import settings_with_groups
from support.kv_places import settings_with_room

from actors.core.message import GroupKey
from pipeline import Message, Model, Mover, Output, Slot, Stage
from pipeline.config import Config
from pipeline.engine.policies import POLICIES
from pipeline.generation.build import build
from pipeline.models import decoder
from pipeline.reading.source import CheckpointSource

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 6
NEW_TOKENS = 6
SHARES = [(0.3, 0.3), (0.6, 0.0), (0.0, 0.5), (0.0, 1.0), (1.0, 0.0)]
DEVICES = ["cpu", "cpu-copy"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


async def generate(model: Model) -> Output:
    return await model.generate(tiny_models.PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=5)


async def everything_moves(checkpoint: Path, **settings: Any) -> Output:
    async with Model.open(checkpoint, **settings, residency=False) as model:
        return await generate(model)


def window_bytes(model: Model, *, moving: bool) -> int:
    """What one pass reads: whole blocks around the tensors of the groups that it reads."""
    residency = model.runtime.residency
    stays = residency.arrived("host")
    return sum(layout.slot_bytes for key, layout in model.runtime.catalog.host.items() if not (moving and key in stays))


async def line_stands_full(model: Model) -> None:
    """Wait until nothing is read any more, because nobody asks for tokens."""
    source, read = model.runtime.source, -1
    while source.bytes_read != read:
        read = source.bytes_read
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("variant", "device"), in_turn(tiny_models.UNLIKE, DEVICES))
async def test_every_family_says_the_same(variant: str, device: str, tmp_path: Path) -> None:
    await asyncio.to_thread(tiny_models.save, variant, tmp_path, 2)
    # Of a longer context a plan with a limit gives up the size of a pass, and keeps more groups than the shares say.
    settings = settings_with_groups(tmp_path, 0.3, 0.3, device=device, context_tokens=tiny_models.MAX_POSITIONS)
    async with Model.open(tmp_path, **settings) as model:
        residency = model.runtime.residency
        assert residency.stays("host")
        assert bool(residency.stays("device")) == (device == "cpu-copy")
        first, second = await generate(model), await generate(model)
    assert first == second == await everything_moves(tmp_path, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shares", SHARES)
async def test_a_pass_reads_what_does_not_stay_and_nothing_else(
    device: str, shares: tuple[float, float], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with_groups(checkpoint, *shares, device=device)
    reads: Counter[tuple[int, str]] = Counter()
    read_into = CheckpointSource.read_into

    async def count(source: CheckpointSource, key: GroupKey, buffer: Any) -> None:
        reads[key] += 1
        await read_into(source, key, buffer)

    monkeypatch.setattr(CheckpointSource, "read_into", count)
    async with Model.open(checkpoint, **settings) as model:
        groups = len(model.runtime.catalog.order)
        await generate(model)
        residency = model.runtime.residency
        stays = residency.arrived("host")
        assert {reads[key] for key in stays} <= {1}
        assert len(reads) == groups
        if sum(shares) >= 1:
            assert len(stays) == groups
        record = model.statistics()
        held = {"device": len(residency.stays("device")), "host": len(residency.stays("host"))}
        assert all(held[place] == count for place, count in record.resident_groups.items())
        assert record.device_groups_peak <= 4
        await line_stands_full(model)
        before, passes = sum(reads.values()), model.runtime.program.passes
        await generate(model)
        await line_stands_full(model)
        more = model.runtime.program.passes - passes
        assert sum(reads.values()) - before == more * (groups - len(stays))


async def test_bytes_of_a_pass_are_those_of_the_moving_windows(checkpoint: Path) -> None:
    async with Model.open(checkpoint, device="cpu", **_room(checkpoint, 0.5)) as model:
        await generate(model)
        await line_stands_full(model)
        before, passes = model.statistics(), model.runtime.program.passes
        await generate(model)
        await line_stands_full(model)
        after, more = model.statistics(), model.runtime.program.passes - passes
        rows = model.runtime.embedding.parts[0].row_bytes * (len(set(tiny_models.PROMPT)) + NEW_TOKENS)
        read = after.bytes_read - before.bytes_read
        assert -4096 * more < read - more * window_bytes(model, moving=True) <= rows, "its last block is not full"
        assert window_bytes(model, moving=True) < 0.6 * window_bytes(model, moving=False)


def _room(checkpoint: Path, share: float) -> dict[str, Any]:
    settings = settings_with_groups(checkpoint, 0.0, share, device="cpu")
    return {"host_memory": settings["host_memory"]}


@pytest.mark.parametrize("device", DEVICES)
async def test_what_stays_on_the_device_is_uploaded_once(device: str, checkpoint: Path) -> None:
    settings = settings_with_groups(checkpoint, 0.5, 0.3, device=device)
    async with Model.open(checkpoint, **settings) as model:
        runtime = model.runtime
        uploads: list[int] = []
        upload = runtime.device.upload

        def count(source: Any, target: Any, copies: Any, *arguments: Any, **named: Any) -> Any:
            uploads.append(target.nbytes)
            return upload(source, target, copies, *arguments, **named)

        runtime.device.upload = count  # type: ignore[assignment,method-assign]
        await generate(model)
        uploads.clear()
        passes = runtime.program.passes
        await generate(model)
        more = runtime.program.passes - passes
        moving = len(runtime.catalog.order) - len(runtime.residency.stays("device"))
        if device == "cpu":  # the uploader hands the slots of moving groups on
            moving -= len(runtime.residency.stays("host"))
        assert len(uploads) == more * (moving + 3), (
            "and each pass its embedding rows, positions and what is to be drawn"
        )


@pytest.mark.parametrize(("policy", "shares", "device"), cases([*POLICIES], [(0.3, 0.3), (1.0, 0.0)], DEVICES))
async def test_under_every_policy(policy: str, shares: tuple[float, float], device: str, checkpoint: Path) -> None:
    settings = settings_with_groups(checkpoint, *shares, device=device, policy=policy, gpu_groups=6)
    async with asyncio.timeout(20), Model.open(checkpoint, **settings) as model:
        outputs = [await generate(model) for _ in range(3)]
    expected = await everything_moves(checkpoint, device="cpu")
    assert all(output.token_ids == expected.token_ids for output in outputs)


class CountAndDouble(Stage):
    """Changes the bytes where they lie: done twice to a group that stays, it would show in the tokens."""

    def __init__(self) -> None:
        self.handled: Counter[tuple[int, str]] = Counter()

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        self.handled[message.layer, message.group] += 1
        for name, tensor in self.catalog.tensors(message).items():
            if name == "norm":
                tensor.mul_(2)
        return message


@pytest.mark.parametrize("after", ["disk_reader", "pinned_stager", "gpu_uploader"])
@pytest.mark.parametrize("device", DEVICES)
async def test_a_stage_changes_a_resident_group_once(device: str, after: str, checkpoint: Path) -> None:
    expected = await everything_moves(checkpoint, device=device, insert={after: [CountAndDouble()]})
    stage = CountAndDouble()
    settings = settings_with_groups(checkpoint, 0.3, 0.3, device=device)
    async with Model.open(checkpoint, **settings, insert={after: [stage]}) as model:
        assert await generate(model) == expected
        assert await generate(model) == expected
        residency, passes = model.runtime.residency, model.runtime.program.passes
    for key, count in stage.handled.items():
        stays_here = key in residency.stays("device") or (
            key in residency.stays("host") and (device == "cpu" or after != "gpu_uploader")
        )
        assert count == 1 if stays_here else count >= passes


class MoveOn(Mover):
    """A place of the user's own behind the device, with slots that all groups share."""

    async def move(self, message: Message[Slot], slot: Slot) -> Any:
        await self.landed(message)
        await self.vacated(message, slot)
        slot.buffer.tensor[: message.at.buffer.nbytes].copy_(message.at.buffer.tensor)
        return message.event


@pytest.mark.parametrize("policy", ["backpressure", "stage2"])
@pytest.mark.parametrize("shares", [(0.4, 0.2), (1.0, 0.0)])
async def test_behind_a_place_of_the_users_own(policy: str, shares: tuple[float, float], checkpoint: Path) -> None:
    from actors.core.budget import Budget
    from pipeline.devices.memory import HostMemory
    from pipeline.engine.runtime import CLOCK

    runtime = build(checkpoint, Config(device="cpu"))
    sizes = runtime.catalog.slot_bytes("host")
    await runtime.aclose()
    mover = MoveOn()
    mover.budget = Budget("own", {kind: [HostMemory(size) for _ in range(2)] for kind, size in sizes.items()}, CLOCK)
    settings = settings_with_groups(checkpoint, *shares, device="cpu-copy", policy=policy)
    async with asyncio.timeout(20), Model.open(checkpoint, **settings, insert={"gpu_uploader": [mover]}) as model:
        assert model.runtime.residency.stays("device")
        outputs = [await generate(model) for _ in range(2)]
    expected = await everything_moves(checkpoint, device="cpu")
    assert all(output == expected for output in outputs)


@pytest.mark.parametrize(("when", "failing", "device"), cases([0, 5, 30], ["read", "compute", "upload"], DEVICES))
async def test_a_failure_spoils_nothing_that_stays(
    when: int, failing: str, device: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, at opening, in the first pass or later: groups are loaded anew, and the tokens are the same."""
    expected = await everything_moves(checkpoint, device=device)
    settings = settings_with_groups(checkpoint, 0.3, 0.3, device=device)
    left = [when]

    def fails() -> None:
        left[0] -= 1
        if left[0] == -1:
            raise ValueError("failed once")

    if failing == "compute":
        ffn_half = decoder.ffn_half
        monkeypatch.setattr(decoder, "ffn_half", lambda *arguments: (fails(), ffn_half(*arguments))[1])
    elif failing == "read":
        read_into = CheckpointSource.read_into

        async def read(source: CheckpointSource, key: GroupKey, buffer: Any) -> None:
            buffer.view[:] = b"\xff" * len(buffer.view)  # what a read that fails leaves is no weights
            fails()
            await read_into(source, key, buffer)

        monkeypatch.setattr(CheckpointSource, "read_into", read)
    async with Model.open(checkpoint, **settings) as model:
        if failing == "upload":
            upload = model.runtime.device.upload

            def uploading(source: Any, target: Any, *arguments: Any, **named: Any) -> Any:
                fails()
                return upload(source, target, *arguments, **named)

            model.runtime.device.upload = uploading  # type: ignore[assignment,method-assign]
        outputs = [await generate(model) for _ in range(8)]
    assert left[0] < 0
    assert [output.token_ids for output in outputs] == [expected.token_ids] * 8


async def test_a_request_that_leaves_in_the_first_pass(checkpoint: Path) -> None:
    """Nobody computes with groups that are loaded then; they must be whole all the same."""
    expected = await everything_moves(checkpoint, device="cpu-copy")
    settings = settings_with_groups(checkpoint, 0.5, 0.3, device="cpu-copy")
    for steps in (0, 1, 3, 10):
        async with Model.open(checkpoint, **settings) as model:
            call = asyncio.create_task(generate(model))
            for _ in range(steps * 10):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            for _ in range(2):
                assert await generate(model) == expected


@pytest.mark.parametrize("device", DEVICES)
async def test_beside_kv_blocks_that_move(device: str, checkpoint: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"context_tokens": 96, "kv_tokens": 480, "device": device}
    expected = await everything_moves(checkpoint, **shape)
    room = settings_with_room(checkpoint, tmp_path, 3, 3, **shape)
    room["host_memory"] += 60_000  # less than a layer of KV blocks: weight groups take it
    async with asyncio.timeout(20), Model.open(checkpoint, **room) as model:
        assert model.runtime.cache.memory.placement.moving
        assert model.runtime.residency.stays("host")
        for _ in range(2):
            assert await generate(model) == expected


async def test_residency_can_be_turned_off(checkpoint: Path) -> None:
    async with Model.open(checkpoint, device="cpu") as model:
        assert len(model.runtime.residency.stays("host")) == len(model.runtime.catalog.order)
    async with Model.open(checkpoint, device="cpu", residency=False) as model:
        assert model.runtime.residency.stays("host") == ()
