"""The page, and its feed: figures are differences, and nothing goes on when nobody looks any more."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.kv_places import settings_with_room
from support.servers import serving

from pipeline import Model
from pipeline.server import live, page
from pipeline.server.line_frame import ACTORS, AT_REST, Moment, line_frame
from pipeline.system.hub_cache import BUNDLED

PROMPT = "import os\n"
KEYS = {"api_keys": ("secret",)}
HEADERS = {"authorization": "Bearer secret"}
MOST_BYTES = 60_000


def named(rows: list[dict[str, Any]], key: str = "name") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


async def test_rates_are_what_was_counted_between_two_moments() -> None:
    async with Model.open(device="cpu-copy", residency=False) as model:
        before = Moment(1.0, model.statistics())
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        now = Moment(5.0, model.statistics())
        frame, catalog = line_frame(before, now), model.runtime.catalog
    pass_bytes = sum(catalog.group_bytes("device").values())
    links, actors, tiers = named(frame["links"]), named(frame["actors"]), named(frame["tiers"], "place")
    assert frame["tokens_per_second"] == 2.0
    assert frame["pass_seconds"] == pytest.approx(4 / 8, rel=0.2)  # some groups of the next pass were sent
    assert 7.5 * pass_bytes <= 4 * links["h2d"]["bytes_per_second"] <= 8.5 * pass_bytes  # some groups were there before
    assert 4 * links["disk"]["bytes_per_second"] == now.counted.bytes_read - before.counted.bytes_read
    assert (links["kv_in"]["bytes_per_second"], actors["kv_swapper"]["busy"]) == (None, None)
    assert tuple(actors) == tuple(ACTORS)
    assert (frame["sections"], actors["disk_reader"]["label"]) == ([], "Disk reader")
    assert 0 < actors["compute_scheduler"]["busy"] <= 1
    assert (tiers["disk"]["moving"], tiers["device"]["weights"]) == (catalog.needed_bytes, 0)
    assert (frame["says"], frame["requests"]) == (AT_REST, {"running": 0, "waiting": 0})


async def test_where_kv_blocks_move_the_swapper_and_its_links_are_there(tmp_path: Path) -> None:
    places = {"device": "cpu-copy", "device_layers": 4, "host_layers": 4, "kv_tokens": 256, "context_tokens": 128}
    async with Model.open(BUNDLED, **settings_with_room(BUNDLED, tmp_path, **places)) as model:
        before = Moment(0.0, model.statistics())
        async for chunk in model.stream(PROMPT, max_new_tokens=8, ignore_eos=True):
            if chunk.finish_reason is None:
                now = Moment(2.0, model.statistics())
        frame = line_frame(before, now)
        rested = line_frame(now, before)  # as if the line had started anew
    links = named(frame["links"])
    assert links["kv_in"]["bytes_per_second"] > links["kv_out"]["bytes_per_second"] > 0
    assert named(frame["actors"])["kv_swapper"]["queue"]["capacity"] > 0
    assert {"host", "device", "kv host", "kv device"} == set(named(frame["budgets"], "place"))
    assert all(tier["kv_used"] + tier["kv_cached"] + tier["kv_free"] > 0 for tier in frame["tiers"])
    assert frame["says"].startswith("Bound by ")
    assert rested["tokens_per_second"] == 0
    assert named(rested["actors"])["disk_reader"]["busy"] == 0


async def test_the_feed_follows_a_model_and_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PERIOD_SECONDS", 0.01)
    async with serving(opened=False, **KEYS) as here:
        served, client = here.served, here.client
        assert (await client.get("/live")).status_code == 401
        states = []
        async with client.stream("GET", "/live", headers=HEADERS) as answer:
            async for line in answer.aiter_lines():
                if not line:
                    continue
                states.append(json.loads(line.removeprefix("data: "))["state"])
                if states == ["loading"]:
                    await served.open()
                if "ready" in states:
                    break
        assert set(states) == {"loading", "ready"}
        async with asyncio.timeout(2):
            while here.server.server_state.tasks:
                await asyncio.sleep(0.01)
        served.draining = True
        last = (await client.get("/live", headers=HEADERS)).text
        assert last == 'data: {"state":"draining","says":"The server is ending."}\n\ndata: [DONE]\n\n'


async def test_the_page_needs_no_key_and_nothing_from_elsewhere() -> None:
    files = sorted(path.name for path in page.FOLDER.iterdir())
    async with serving(opened=False, **KEYS) as here:
        answers = [await here.client.get("/"), *[await here.client.get(f"/page/{name}") for name in files]]
        missing = await here.client.get("/page/..%2Fpage.py")
    assert missing.status_code == 404
    assert {answer.status_code for answer in answers} == {200}
    assert sum(len(answer.content) for answer in answers[1:]) < MOST_BYTES
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not [word for word in ("https:", "innerHTML", " style=", "onclick=") if word in answer.text]
