"""A CPU that takes work of some numbers of rows for work that repeats, as a GPU does; it does it anew each time."""

import asyncio

import pytest

from pipeline import Model
from pipeline.devices.cpu import CpuDevice
from pipeline.models import decoder


def let_work_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that stay are launched as stretches then."""
    monkeypatch.setattr(CpuDevice, "repeated_rows", (2, 4, 8, 16))
    monkeypatch.setattr(decoder, "attention_launches", lambda layer, kv, rows: "alike")


async def until_the_table_is_seen(model: Model) -> None:
    """Behind a first pass the embedding table comes into memory; from then on a pass can begin ahead of tokens."""
    async with asyncio.timeout(5):
        while not model.runtime.embedding.is_seen:
            await asyncio.sleep(0.001)
