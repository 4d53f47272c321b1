"""Every setting of `Config` from every command that opens a model, and in its help. Derived from code, not listed."""

import argparse
import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from actors.core.stage import Stage
from pipeline.cli import _parser, main
from pipeline.config import Config
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.policies import CURRENT_CHAINED
from pipeline.errors import ConfigError
from pipeline.tools.commands.command import Command
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.sampling import OPTIONS
from pipeline.tools.commands.settings import described, plain, with_setting

ROOT = Path(__file__).parent.parent.parent.parent
SETTINGS = {field.name: field.default for field in dataclasses.fields(Config)}


class Harmless(Stage):
    name = "harmless"


def commands(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)
            return
    assert isinstance(parser, Parser)
    yield parser


COMMANDS = {parser.prog: parser for parser in commands(_parser())}
OPENING = [name for name, parser in COMMANDS.items() if "settings" in parser._defaults]


@dataclasses.dataclass
class Source:
    """What a module imports, and the texts of what it raises."""

    imported: set[str]
    raised: str


@cache
def read(module: str) -> Source | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not module.startswith("pipeline.") or not path.exists():
        return None
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module is not None]
    inner = [one for node in nodes if isinstance(node, ast.Raise) for one in ast.walk(node)]
    return Source(
        {name for node in imports for name in (str(node.module), *(f"{node.module}.{one.name}" for one in node.names))},
        " ".join(one.value for one in inner if isinstance(one, ast.Constant) and isinstance(one.value, str)),
    )


def modules_of(command: Command) -> dict[str, Source]:
    """All modules that running a command can import."""
    found: dict[str, Source] = {}
    waiting = {f"pipeline.tools.commands.{command.module}"}
    while waiting:
        name = waiting.pop()
        if name not in found and (source := read(name)) is not None:
            found[name] = source
            waiting |= source.imported
    return found


def options_of_sampling() -> set[str]:
    return {f"--{field.name.replace('_', '-')}" for field in OPTIONS}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_setting_that_messages_name(name: str) -> None:
    parser = COMMANDS[name]
    modules = modules_of(parser.get_default("command"))
    named = options_of_sampling() if name == "penstock run" else set()
    if "pipeline.generation.build" in modules:  # it opens a model, so any setting may be at fault
        named |= {*SETTINGS, "--set"}
    for module, source in modules.items():
        if module.startswith("pipeline.tools.commands."):
            named |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", source.raised))
    told = parser.format_help()
    assert {one for one in named if not re.search(rf"(?<![\w-]){one}\b", told)} == set()


def test_most_commands_open_a_model() -> None:
    assert len(OPENING) >= 10


def test_each_command_says_what_it_does() -> None:
    assert [name for name, parser in COMMANDS.items() if not (parser.description or "").endswith(".")] == []


def test_the_table_names_the_actors_that_queues_and_stages_belong_to() -> None:
    assert [name for name in ACTORS[1:] if name not in described()["queues"]] == []
    assert [name for name in ACTORS[:-1] if name not in described()["insert"]] == []


def test_the_table_says_what_each_setting_is() -> None:
    assert described().keys() == SETTINGS.keys()
    assert all(20 < len(text) < 170 for text in described().values())


@pytest.mark.parametrize("name", OPENING)
def test_every_setting_is_taken_unless_the_command_sets_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = COMMANDS[name]
    own, start = parser._defaults["own_settings"], parser._defaults["settings"]
    values = {**SETTINGS, "queues": {"disk_reader": 2}}
    del values["insert"]
    for setting, value in values.items():
        if setting in own:
            with pytest.raises(SystemExit):
                parser.parse_args(as_options({setting: value}))
            assert f"{setting}: this command sets it itself" in capsys.readouterr().err
        else:
            options, _ = parser.parse_known_args([*required(parser), *as_options({setting: value})])
            assert options.settings == {**start, setting: value}
            Config.from_arguments(options.settings)


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """The same settings as a command line."""
    parts: dict[str, Any] = {}
    for name, value in settings.items():
        parts |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
    words = {"True": "yes", "False": "no", "None": "none"}
    return [part for name, value in parts.items() for part in ("--set", f"{name}={words.get(str(value), value)}")]


def required(parser: Parser) -> list[str]:
    """What the command cannot do without."""
    groups = [group._group_actions[0] for group in parser._mutually_exclusive_groups if group.required]
    named = [*groups, *(action for action in parser._actions if action.option_strings and action.required)]
    nameless = [action for action in parser._actions if not action.option_strings]
    return [*("1" for _ in nameless), *(part for action in named for part in (action.option_strings[0], "1"))]


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        (["gpu_groups=6"], {"gpu_groups": 6}),
        (["kv-tokens=none"], {"kv_tokens": None}),
        (["residency=off", "checksums=TRUE"], {"residency": False, "checksums": True}),
        (
            ["host_memory=8Gi", "chunk_bytes=8MiB", "kv_disk=a=b"],
            {"host_memory": "8Gi", "chunk_bytes": "8MiB", "kv_disk": "a=b"},
        ),
        (["queues.disk_reader=2", "queues.gpu_uploader=1"], {"queues": {"disk_reader": 2, "gpu_uploader": 1}}),
        (["gpu_groups=6", "gpu_groups=2"], {"gpu_groups": 2}),
        (["policy=pipeline.engine.policies:CURRENT_CHAINED"], {"policy": CURRENT_CHAINED}),
    ],
)
def test_values_have_the_types_of_config(told: list[str], settings: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    for one in told:
        found = with_setting(found, one, ())
    assert found == settings


def test_a_stage_of_ones_own_is_inserted() -> None:
    settings = with_setting({}, f"insert.disk_reader={__name__}:Harmless,{__name__}:Harmless", ())
    assert settings["insert"]["disk_reader"] == [Harmless, Harmless]
    with pytest.raises(ConfigError, match="is an object, which the processes that this command starts cannot be given"):
        plain(settings)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("gpu_groups", "need NAME=VALUE, have 'gpu_groups'"),
        ("kv_token=1", "unknown setting 'kv_token'; did you mean 'kv_tokens'?"),
        ("max-tokens=3", "max_tokens: is an argument of a call, .*; `penstock run` takes it as --max-tokens"),
        ("gpu_groups=many", "gpu_groups: need a whole number from 1 to 65536, have 'many'"),
        ("residency=maybe", "residency: need True or False, have 'maybe'"),
        ("queues=2", "queues: name the actor too, as in queues.disk_reader=N"),
        ("queues.disk_reader=two", r"queues\['disk_reader'\]: need a whole number from 1 to 1024, have 'two'"),
        ("gpu_groups.disk_reader=2", "gpu_groups: is one value, have gpu_groups.disk_reader"),
        ("insert.disk_reader=nowhere:Stage", "nowhere:Stage: cannot be loaded: ModuleNotFoundError"),
        ("policy=pipeline.engine.policies:NONE", "cannot be loaded: AttributeError"),
    ],
)
def test_what_is_no_setting_or_no_value_is_told(told: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        with_setting({}, told, ())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "kv_token=1"], "argument --set: unknown setting 'kv_token'; did you mean 'kv_tokens'?"),
        (["--gpu-groups", "x"], "argument --gpu-groups: gpu_groups: need a whole number from 1 to 65536, have 'x'"),
        (["--top-p", "x"], "argument --top-p: top_p: need a number from 0.0 to 1.0; have 'x'"),
        (["--top_p", "1"], "unknown option '--top_p'; did you mean '--top-p'?"),
        (["extra"], "unexpected argument 'extra'"),
        (["--prompt-file", "x"], "argument --prompt-file: not allowed with argument --prompt"),
    ],
)
def test_usage_errors_are_one_line_and_status_two(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "nowhere", "--prompt", "x", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"penstock run: {says} (options: penstock run --help)\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "m", "--promt", "x"], "unknown option '--promt'; did you mean '--prompt'?"),
        (["run", "m", "--required"], "unknown option '--required'; known are --help, "),
        (["run", "m", "--top-p=1", "--stop", "--no way"], "one of the arguments --prompt --raw --prompt-file --pro"),
        (["make-checkpoint", "out", "--lke", "llama-3-8b", "--layer", "2"], "'--lke'; did you mean '--like'?"),
    ],
)
def test_what_is_required_may_be_misspelt(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # so that a prompt is required
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "tune bundled",
        "bench pass bundled",
        "bench open bundled",
        "bench policies bundled",
        "bench speed bundled",
        "bench throughput bundled --requests 1 --prompt-tokens 4 --new-tokens 2",
        "trace-routing bundled --prompt x --max-new-tokens 2 -o routing",
    ],
)
def test_what_looks_at_one_line_refuses_several_devices_first(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("pipeline.api.Model.open", opened)
    assert main([*command.split(), "--devices", "cpu,cpu"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    wanted = "penstock: --devices: this command looks at the line of one device, have cpu,cpu; name one as --device"
    assert told == wanted
