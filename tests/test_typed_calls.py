"""Mistakes in calls are seen by type checkers before anything runs, and the types say what is accepted."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline import Model
from pipeline.config import Config, Settings
from pipeline.generation.parameters import ALIASES, SamplingParameters
from pipeline.generation.requests import CallArguments, CallOptions

ROOT = Path(__file__).parent.parent
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if "openai" not in path.read_text()]
"""Those that need no package but ours."""
BEGIN = """
from collections.abc import AsyncIterator, Sequence
import array, collections, numpy
from pathlib import Path
from actors.core.trace import Trace
from pipeline import CallArguments, Chunk, Config, Message, Model, Output, Prompt, Settings, Slot, Stage
from pipeline.engine.policies import POLICIES

async def calls(model: Model, ids: Sequence[int], settings: Settings, arguments: CallArguments, name: str) -> None:
"""
RIGHT = [
    "Model.open()",
    "Model.open('folder', gpu_groups=4, host_memory='60%', gpu_memory=8 << 30, kv_disk='.', kv_tokens=200_000)",
    "Model.open(Path('folder'), trace=Trace(), device='gpu', dtype=name, policy=POLICIES['stage2'], checksums=None)",
    "Model.open(insert={'disk_reader': [Stage()]}, queues={'disk_reader': 2}, reader_lanes=4, chunk_bytes='8Mi')",
    "Model.open(**settings)",
    "output: Output = await model.generate('text', max_new_tokens=4, temperature=1, top_p=0.9, seed=1, stop='a')",
    "outputs: list[Output] = await model.generate('text', n=4, priority=-1, cache_scope='a', stop=['a', 'b'])",
    "await model.generate([1, 2], stop_token_ids=(1, 2), bad_words_ids=[[1], [2, 3]], logprobs=None, max_tokens=3)",
    "await model.generate(ids, logit_bias={1: -100, 2: 0.5}, min_new_tokens=2)",
    "await model.generate(ids, **arguments)",
    "await model.generate((1, 2), forced_eos_token_id=3, suppress_tokens=ids)",
    "await model.generate(range(3), ignore_eos=True)",
    "await model.generate(index for index in range(3))",
    "await model.generate(collections.deque(array.array('i', [1])))",
    "await model.generate(numpy.array([1, 2]))",
    "ids = model.tokenizer.encode('text')[: 100 - model.tokenizer.count('text')]",
    "name = model.tokenizer.decode(ids) + model.tokenizer.decode(output.token_ids)",
    "answer: Output = await model.chat([{'role': 'user', 'content': 'a'}], tools=[{}], max_tokens=4)",
    "answers: list[Output] = await model.chat([], n=2, chat_template_kwargs={'enable_thinking': False})",
    "pieces: list[Chunk] = [chunk async for chunk in model.stream_chat([], documents=[{}], temperature=0.5)]",
    "chunks: list[Chunk] = [chunk async for chunk in model.stream('text', n=2, temperature=0.5, min_p=0.1)]",
    "async with Model.open() as other, other.report('a.html'): await other.aclose(drain=True)",
]
MISTAKES = [
    "await model.chat([], tool=[{}])",
    "model.stream_chat('text')",
    "Model.open(gpu_group=4)",
    "Model.open(gpu_groups='4')",
    "Model.open(4)",
    "Model.open(device=0)",
    "Model.open(residency='no')",
    "Model.open(host_memory=0.5)",
    "Model.open(insert=[Stage()])",
    "Model.open(queues={'disk_reader': '2'})",
    "Model.open(trace='trace.json')",
    "Model.open(temperature=0.5)",
    "Config(gpu_group=4)",
    "await model.generate()",
    "await model.generate(None)",
    "await model.generate(b'text')",
    "await model.generate(['one', 'two'])",
    "await model.generate([{'role': 'user', 'content': 'text'}])",
    "await model.generate({'input_ids': [1]})",
    "await model.generate({1, 2})",
    "await model.generate('text', temprature=0.5)",
    "await model.generate('text', temperature='low')",
    "await model.generate('text', max_new_tokens='64')",
    "await model.generate('text', max_new_tokens=6.4)",
    "await model.generate('text', stop=5)",
    "await model.generate('text', stop_token_ids='a')",
    "await model.generate('text', n='2')",
    "await model.generate('text', gpu_groups=4)",
    "(await model.generate('text', n=2)).text",
    "model.generate('text').text",
    "[chunk async for chunk in model.stream('text', n='2')]",
    "[chunk async for chunk in model.stream('text', top_k=0.5)]",
    "[chunk async for chunk in model.stream('text', max_token=5)]",
    "await model.stream('text')",
    "model.tokenizer.encode(b'text')",
    "model.tokenizer.decode('text')",
    "model.tokenizr.count('text')",
    "from pipeline import Modell",
]


def mypy(files: Sequence[Path]) -> set[tuple[str, int]]:
    """Where it finds errors. It shares its cache with `make lint`, which has looked at all that the files import."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *map(str, files)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"^(.*?):(\d+): error: ", told.stdout, re.MULTILINE)
    assert bool(found) == bool(told.returncode), told.stdout + told.stderr
    return {(Path(name).name, int(line)) for name, line in found}


def pyright(files: Sequence[Path]) -> set[tuple[str, int]]:
    """Where it finds errors."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(told.stdout)["generalDiagnostics"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found if one["severity"] == "error"}


@pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])
def test_type_checkers_refuse_mistakes_and_accept_what_works(
    check: typing.Callable[[Sequence[Path]], set[tuple[str, int]]], tmp_path: Path
) -> None:
    calls = tmp_path / "calls.py"
    calls.write_text("\n".join([*BEGIN.strip().splitlines(), *(f"    {call}" for call in [*RIGHT, *MISTAKES]), ""]))
    lines = calls.read_text().splitlines()
    assert len(MISTAKES) >= 10
    found = check([calls, *EXAMPLES])
    assert {(name, lines[line - 1].strip()) for name, line in found if name == "calls.py"} == {
        ("calls.py", call) for call in MISTAKES
    }
    assert not {place for place in found if place[0] != "calls.py"}


def test_the_types_of_settings_are_those_of_the_config() -> None:
    assert typing.get_type_hints(Settings) == typing.get_type_hints(Config)


def test_the_types_of_arguments_are_those_of_their_fields_and_none() -> None:
    fields = {**typing.get_type_hints(SamplingParameters), **typing.get_type_hints(CallOptions)}
    wanted = {name: accepted(name, hint) | None for name, hint in fields.items()}
    wanted |= {alias: wanted[name] for alias, name in ALIASES.items()}
    del wanted["n"]  # a parameter of its own, as `generate` has other results with it
    assert typing.get_type_hints(CallArguments) == wanted


def test_help_and_notebooks_see_each_argument_and_its_default() -> None:
    shown = inspect.signature(Model.open).parameters
    defaults = {one.name: getattr(Config(), one.name) for one in dataclasses.fields(Config)}
    assert {name: one.default for name, one in shown.items()} == {"path": None, "trace": None, **defaults}
    for call in (Model.generate, Model.stream):
        shown = inspect.signature(call).parameters
        assert list(shown) == ["self", "prompt", "n", *typing.get_type_hints(CallArguments)]
        assert (shown["temperature"].default, shown["priority"].default) == (0.0, 0)
    assert not inspect.iscoroutinefunction(Model.stream)
    assert inspect.iscoroutinefunction(Model.generate)


def accepted(name: str, hint: typing.Any) -> typing.Any:
    """What a call may give where a field holds `hint`: any sequence for a tuple, and what stands for one of one."""
    if name == "logit_bias":
        return Mapping[int, float]
    if typing.get_origin(hint) is not tuple:
        return hint
    alone = {"stop": str, "forced_bos_token_id": int, "forced_eos_token_id": int}.get(name)
    many = Sequence[accepted("", typing.get_args(hint)[0])]
    return alone | many if alone else many
