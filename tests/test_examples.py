"""Every example runs as a user runs it, stays short, and shows what it is there to show."""

import asyncio
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.core.errors import ActorFailed
from pipeline import ConfigError, Message, Model, Program, Slot, Stage, open_program
from pipeline.engine.actor_names import ACTORS
from pipeline.system.memory_plan import Holding

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
SAYS = {
    "01_generate": r"-- 48 tokens, finished by length",
    "02_stream": r"-- finished by stop",
    "03_concurrent_requests": r"-- 32 requests, 512 tokens in 16 passes\n"
    r"-- samples, [1-9]\d* tokens of whose prompts were not computed again: .*\n"
    r"-- 1 call took too long; 0 KV blocks are held after the next one",
    "04_tune_queues": r"( +\d+ +\d+ +24 .*'    def __init__\(sel'\n){5}-- from setting to setting up to \d+%, ",
    "05_custom_stage": r"24 groups moved in each of 8 passes, and were the same in 1[67]\d comparisons",
    "06_simulate": r"-- stage3 is the fastest",
    "07_own_policy": r"(.* s a pass, 24 groups moving: .*\n){3}-- the same text from all",
    "08_own_program": r"12,\d{3},\d{3} bytes moved in 3 passes, [2-4] blocks at a time: .*\n-- as plain torch computes",
    "09_own_family": r"-- 16 tokens of a family of one's own",
    "10_server_client": r"^need the package openai: pip install openai$",
}
"""What each prints on its defaults: 24 groups move although all of them fit."""
ALONE = ["01_generate", "06_simulate"]
"""Run in a process of their own, which takes seconds to begin; the others run in that of the tests."""
CLIENT = "10_server_client"
"""Asks a server, as `make clients` lets it; here it says what it lacks."""


def test_there_are_examples_for_everything_that_is_said() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert len(path.read_text().splitlines()) < (60 if path.stem == "08_own_program" else 40)
    if path.stem in ALONE:
        result = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        printed = result.stdout
    elif path.stem == CLIENT:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        printed = str(ended.value)
    else:
        runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
    assert re.search(SAYS[path.stem], printed), printed


def loaded(stem: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The globals of an example, which has not run."""
    path = next(path for path in EXAMPLES if path.stem == stem)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "run", Coroutine.close)
        main = runpy.run_path(str(path))["main"]
    names: dict[str, Any] = main.__globals__
    return names


@pytest.mark.parametrize(
    ("repeated", "says"),
    [
        ([1.0, 1.02, 1.05], "up to 100%, more than the 5% between"),
        ([1.0, 1.05, 3.0], "up to 100%, which proves nothing beside the 200% between"),
    ],
)
async def test_tuning_queues_tells_an_effect_from_the_noise(
    repeated: list[float], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One group at a time takes twice as long; the noise is how far runs of one setting lie apart."""
    names = loaded("04_tune_queues", monkeypatch)
    each = {setting: iter(repeated) for setting in ((1, 1), (2, 1), (4, 1), (4, 4), (8, 8))}

    async def measure(gpu_groups: int, queue: int) -> tuple[float, str]:
        return next(each[gpu_groups, queue]) * (2 if gpu_groups == 1 else 1), ""

    names["measure"] = measure
    await names["main"]()
    assert says in capsys.readouterr().out


def test_an_own_program_is_reported_like_a_model_and_refused_where_its_slots_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = loaded("08_own_program", monkeypatch)
    asyncio.run(names["main"]())
    page = Path(capsys.readouterr().out.splitlines()[0].rpartition(" ")[2])
    text = page.read_text()
    assert "<b>72</b>groups computed" in text
    assert all(actor in text for actor in ACTORS)
    small = names["EngineSettings"](device="cpu-copy", gpu_memory="600KB")
    own = Holding("vectors", "device", 50_000, "")
    with pytest.raises(
        ConfigError, match=r"need 722 kB, have 600 kB \(vectors 50 kB; 4 block slots 672 kB \[gpu_groups\]"
    ):
        names["open_program"](page.parent, names["GROUPS"], names["Denoiser"], small, holdings=[own])
    for order, told in (
        ((), "need the groups of a pass"),
        (((99, "block"),), r"need groups of specs; have \(99, 'block'\)"),
    ):
        with pytest.raises(ConfigError, match=rf"Other\.order: {told}"):
            names["open_program"](
                page.parent, names["GROUPS"], lambda _, order=order: type("Other", (), {"order": order})()
            )


def test_an_own_program_needs_settings_of_the_engine_and_a_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings: need EngineSettings\(\.\.\.\), have \{'device': 'cpu'\}"):
        open_program(tmp_path, {(0, "block"): []}, Program, {"device": "cpu"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="specs: need at least one group, have none"):
        open_program(tmp_path, {}, Program)  # type: ignore[arg-type]


class Spoiling(Stage):
    """Changes a weight of the second pass's first group."""

    async def handle(self, message: Message[Slot]) -> Message[Slot]:
        await self.landed(message)
        if message.seq == 24:
            next(iter(self.catalog.tensors(message).values())).view(-1)[0] += 1.0
        return message


async def test_the_custom_stage_refuses_a_group_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    checksum = loaded("05_custom_stage", monkeypatch)["Checksum"]()
    async with Model.open(insert={"pinned_stager": [Spoiling(), checksum]}, residency=False) as model:
        with pytest.raises(ActorFailed, match=r"checksum failed at layer 0 group 'attn': .*the weights add up to"):
            await model.generate("def ", max_new_tokens=8)


async def test_policies_that_give_different_texts_end_the_example_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = map(str, itertools.count())

    async def generate(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(text=next(texts))

    monkeypatch.setattr(Model, "generate", generate)
    with pytest.raises(SystemExit, match=r"a bug: .*never the text"):
        await loaded("07_own_policy", monkeypatch)["main"]()
