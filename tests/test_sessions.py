"""A conversation goes on after a restart from the file it was saved to, with the same bits, wherever its KV lives."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.family_models import CASES
from support.kv_places import settings_with_room

from pipeline import ClosedError, Model, RequestError
from pipeline.generation import sessions
from pipeline.generation.session_file import MAGIC, PREAMBLE, open_session
from pipeline.state.spill_file import Region, SpillFile

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
DRAW = random.Random(21)
PROMPT, OTHER = ([DRAW.randrange(3, tiny_models.VOCABULARY_SIZE) for _ in range(count)] for count in (50, 90))
SETTINGS: dict[str, Any] = {"context_tokens": 112, "kv_tokens": 1120, "max_requests": 4, "gpu_groups": 5}
RUNS: dict[str, tuple[str, str, tuple[int, int] | None, set[str]]] = {
    "dense": ("dense", "cpu", None, {"device"}),
    "dense in three places": ("dense", "cpu-copy", (4, 4), {"device", "host", "disk"}),
    "latent in three places": ("latent", "cpu-copy", (4, 4), {"device", "host", "disk"}),
    "recurrent": ("recurrent", "cpu", None, {"device"}),
    "recurrent in host memory": ("recurrent", "cpu-copy", (2, 4), {"host"}),
    "recurrent on the disk": ("recurrent", "cpu-copy", (2, 2), {"disk"}),
}
"""The checkpoint, the device, for how many layers there is room on it and in host memory, and where they live then."""
MESSAGES = [{"role": "user", "content": "Grüße"}]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_models.save("llama_gqa_llama3", folder / "dense", layers=6)
    latent = CASES["deepseek_v3"].config()
    latent.num_hidden_layers = latent.first_k_dense_replace = 6
    tiny_models.save_model(tiny_models.randomised(latent, seed=3), folder / "latent", shards=1)
    recurrent = tiny_models.randomised(CASES["qwen3_5_text"].config(), seed=3)
    tiny_models.save_model(recurrent, folder / "recurrent", shards=1)
    return folder


async def answer(model: Model, prompt: list[int], scope: str) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {"temperature": 1.0, "seed": 4, "logprobs": 2, "ignore_eos": True}
    output = await model.generate(prompt, max_new_tokens=15, cache_scope=scope, **arguments)
    return output.token_ids, output.logprobs, output.cached_tokens


@pytest.mark.parametrize("run", RUNS)
async def test_a_conversation_goes_on_after_a_restart_with_the_same_bits(
    run: str, checkpoints: Path, tmp_path: Path
) -> None:
    """Beside requests of others, which it does not change; and only in its own scope."""
    name, device, room, places = RUNS[run]
    checkpoint, path, settings = checkpoints / name, tmp_path / "session", {**SETTINGS, "device": device}
    if room is not None:
        settings = settings_with_room(checkpoint, tmp_path, *room, **settings)
    async with Model.open(checkpoint, **settings) as model:
        assert {where for where, one in model.statistics().kv_blocks.places.items() if one.layers} == places
        first = await answer(model, PROMPT, "a")
        ids = [*PROMPT, *first[0]]
        saving = model.save_session(path, ids, messages=MESSAGES, cache_scope="a")
        saved, beside = await asyncio.gather(saving, answer(model, OTHER[:1] * 2, "beside"))
        assert saved == 64
        expected = await answer(model, [*ids, 7, 8, 9], "a")
        assert expected[2] == 64
    async with Model.open(checkpoint, **settings) as model:
        loaded, again = await asyncio.gather(
            model.load_session(path, cache_scope="b"), answer(model, OTHER[:1] * 2, "beside")
        )
        assert (loaded.cached_tokens, loaded.token_ids, loaded.messages) == (64, ids, MESSAGES)
        assert again == beside
        assert await answer(model, [*ids, 7, 8, 9], "b") == expected
        assert (await model.generate(ids, max_new_tokens=1, cache_scope="a")).cached_tokens == 0
        assert (await model.load_session(path, cache_scope="b")).cached_tokens == 64, "where it still is, it stays"
        assert model.statistics().kv_blocks.used == 0


def cut(nbytes: int) -> Callable[[bytearray], bytes]:
    return lambda content: bytes(content[:nbytes])


def flipped(at: int) -> Callable[[bytearray], bytes]:
    def flip(content: bytearray) -> bytes:
        content[at] ^= 16
        return bytes(content)

    return flip


def forged(**values: object) -> Callable[[bytearray], bytes]:
    """A header that says something else, with the right checksum."""

    def forge(content: bytearray) -> bytes:
        _, length, _ = PREAMBLE.unpack(content[: PREAMBLE.size])
        raw = json.dumps({**json.loads(content[PREAMBLE.size :][:length]), **values}).encode()
        return PREAMBLE.pack(MAGIC, len(raw), zlib.crc32(raw)) + raw

    return forge


DAMAGED: dict[str, tuple[Callable[[bytearray], bytes], str]] = {
    "empty": (cut(0), "is no session of penstock"),
    "its magic": (flipped(3), "is no session of penstock"),
    "its length": (flipped(22), "damaged: its header is not what was written"),
    "its header": (flipped(100), "damaged: its header is not what was written"),
    "cut in the header": (cut(200), "damaged: its header is not what was written"),
    "cut in the cells": (cut(30_000), r"damaged: need \d+ bytes, have 30000"),
    "cut in the sums": (cut(-1), r"damaged: need \d+ bytes, have \d+"),
    "longer": (lambda content: bytes(content) + b"x", r"damaged: need \d+ bytes, have \d+"),
    "a cell": (flipped(20_000), r"damaged: what lies at byte \d+ is not what was written"),
    "more blocks than tokens": (forged(blocks=99), "its header contradicts itself"),
    "an edge within a block": (forged(edges=[8]), "its header contradicts itself"),
    "tokens that are none": (forged(token_ids=[0.5] * 64), "its header contradicts itself"),
    "a message without a role": (forged(messages=[{}]), "its header contradicts itself"),
    "another format": (forged(format=2), "need a session of format 1, have 2"),
    "a sum": (flipped(-1), r"damaged: what lies at byte \d+ is not what was written"),
}


async def test_what_is_damaged_or_not_of_this_model_is_refused_and_nothing_of_it_found(
    checkpoints: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoints / "dense"
    path, broken = tmp_path / "session", tmp_path / "broken"
    async with Model.open(checkpoint, **SETTINGS) as model:
        ids = [*PROMPT, *(await answer(model, PROMPT, "a"))[0]]
        await model.save_session(path, ids, cache_scope="a")
        for damage, says in DAMAGED.values():
            broken.write_bytes(damage(bytearray(path.read_bytes())))
            with pytest.raises(RequestError, match=says):
                await model.load_session(broken, cache_scope="b")
        with pytest.raises(RequestError, match="No such file"):
            await model.load_session(tmp_path / "nothing", cache_scope="b")
        with pytest.raises(RequestError, match="is not a regular file"):
            await model.load_session(tmp_path, cache_scope="b")
        with pytest.raises(RequestError, match="cache_scope: need a name"):
            await model.load_session(path)
        with pytest.raises(RequestError, match="token_ids: need token ids"):
            await model.save_session(path, [-1], cache_scope="a")
        assert (await answer(model, ids, "b"))[2] == 0
        assert model.statistics().kv_blocks.used == 0
    async with Model.open(checkpoint, **{**SETTINGS, "dtype": "bfloat16"}) as model:
        with pytest.raises(RequestError, match="dtype: need 'float32', have 'bfloat16'"):
            await model.load_session(path, cache_scope="a")
    shutil.copytree(checkpoint, tmp_path / "other")
    weights = next((tmp_path / "other").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    for at in range(len(content) // 2, len(content)):
        content[at] ^= 1
    weights.write_bytes(content)
    async with Model.open(tmp_path / "other", **SETTINGS) as model:
        with pytest.raises(RequestError, match="it was written with another model"):
            await model.load_session(path, cache_scope="a")
    with contextlib.closing(open_session(path)) as file:
        assert file.header.token_ids == ids, "which need no model"


async def test_a_save_waits_until_the_disk_has_what_it_reads(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = asyncio.Event(), SpillFile.write

    async def late(spill: SpillFile, region: Region, *arguments: Any) -> None:
        if region == last:
            await written.wait()
        await write(spill, region, *arguments)

    room = settings_with_room(checkpoints / "dense", tmp_path, 4, 4, **SETTINGS, device="cpu-copy")
    async with asyncio.timeout(20), Model.open(checkpoints / "dense", **room) as model:
        last = max(model.runtime.cache.memory.spill_regions.items())[1]
        monkeypatch.setattr(SpillFile, "write", late)
        await model.generate(PROMPT, max_new_tokens=1, cache_scope="a")
        saving = asyncio.create_task(model.save_session(tmp_path / "session", PROMPT, cache_scope="a"))
        while not model.statistics().kv_blocks.used:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert not saving.done()
        written.set()
        assert await saving == 48
        saved = (tmp_path / "session").read_bytes()
        saving = asyncio.create_task(model.save_session(tmp_path / "session", PROMPT, cache_scope="a"))
        while not model.statistics().kv_blocks.used:
            await asyncio.sleep(0)
        model.runtime.admission.batcher.prefixes.forget()  # as when the line has failed
        with pytest.raises(RequestError, match="has lost what was kept"):
            await saving
        assert (tmp_path / "session").read_bytes() == saved


async def test_as_much_is_loaded_as_there_is_room_for_and_nothing_when_it_is_given_up(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints / "dense"
    path = tmp_path / "session"
    async with Model.open(checkpoint, **SETTINGS) as model:
        ids = [*OTHER, *(await answer(model, OTHER, "a"))[0]]
        assert await model.save_session(path, ids, cache_scope="a") == 96
    with os.scandir(tmp_path) as entries:
        assert sorted(entry.name for entry in entries) == ["session"], "nothing half-written stays"
    small = {**SETTINGS, "context_tokens": 64, "kv_tokens": 64, "share_prefixes": True}
    async with Model.open(checkpoint, **small) as model:
        monkeypatch.setattr(sessions, "CHUNK_BYTES", 1)
        loading = asyncio.create_task(model.load_session(path))
        while not model.statistics().kv_blocks.used:
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        statistics = model.statistics()
        assert (statistics.kv_blocks.used, statistics.prefixes.cached_blocks) == (0, 0)
        loading = asyncio.create_task(model.load_session(path))
        while not model.statistics().kv_blocks.used:
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            waits = asyncio.create_task(model.generate(ids[:60], max_new_tokens=1))
            assert (await loading).cached_tokens == 64
            assert (await waits).cached_tokens == 48, "it waited for room, and was not forgotten"
        loading = asyncio.create_task(model.load_session(path, cache_scope="b"))
        while not model.statistics().kv_blocks.used:
            await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="the model was closed before the session was loaded"):
        await loading
