"""Addresses where no cluster is, and more sections than a model can be cut into: refused before anything waits."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from pipeline import ConfigError, Model
from pipeline.cli import main
from pipeline.cluster.cluster_sections import SectionDied
from pipeline.errors import ResourceError


async def test_an_address_that_does_not_answer_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"cluster: found no Ray cluster at '{address}': .*start one with"):
        await Model.open("bundled", cluster=address)
    assert time.monotonic() - started < 5, "Ray would try for minutes"


async def test_an_address_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("pipeline.cluster.placing.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(asyncio, "open_connection", silent)
    with pytest.raises(ConfigError, match=r"no answer within 0\.05 s; start one with"):
        await Model.open("bundled", cluster="127.0.0.1:6379")


async def test_more_sections_than_layers_are_refused_before_a_cluster_is_looked_for() -> None:
    with pytest.raises(ConfigError, match="sections: need at most one for each of 10 layers, have 11"):
        await Model.open("bundled", cluster="127.0.0.1:1", sections=11)


async def test_a_section_that_dies_while_the_model_opens_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = list[str]()

    class Dying:
        name = "section 1 on node 10.0.0.7 (0a1b2c3d)"

        def __init__(self, *_: object) -> None:
            pass

        async def survey(self) -> None:
            raise SectionDied(self.name, None, None, ConnectionError("its process has ended"))

        async def aclose(self) -> None:
            ended.append(self.name)

    async def there(*_: object) -> bool:
        return False

    for name, value in (("join_cluster", there), ("place", there), ("RaySections", Dying)):
        monkeypatch.setattr(f"pipeline.cluster.open_on_cluster.{name}", value)
    said = r"^section 1 on node 10.0.0.7 \(0a1b2c3d\) failed: ConnectionError: its process has ended; that was while "
    with pytest.raises(ResourceError, match=said + "the model was opened: `ray status` says which nodes are there"):
        await Model.open("bundled", cluster="auto")
    assert ended == [Dying.name]


def test_a_chat_that_could_not_be_saved_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "session")
    assert main(["chat", "bundled", "--session", file, "--set", "cluster=127.0.0.1:1"]) == 1
    assert "--session: KV blocks of a model on a cluster are on its nodes" in capsys.readouterr().err
