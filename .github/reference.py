"""Writes the API reference: `make docs`. pdoc renders the docstrings; the two tables of settings are made here."""

import dataclasses
import inspect
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pdoc

import pipeline
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.requests import CallOptions
from pipeline.text.chat import ChatOptions

MODULES = ("pipeline", "actors")
TABLES = (
    ("Settings of `Model.open`", "What `pipeline.Config` holds.", (pipeline.Config,)),
    ("Arguments of `generate` and `stream`", "Beside the prompt.", (SamplingParameters, CallOptions)),
    ("More arguments of `chat` and `stream_chat`", "Beside the messages.", (ChatOptions,)),
)


def described(kind: type) -> dict[str, str]:
    """What the sections `Attributes:` of the docstrings of a class and its bases say of each field."""
    texts: dict[str, str] = {}
    for one in kind.__mro__:
        entries = re.split(r"\n    (?=[a-z_]+: )", inspect.cleandoc(one.__doc__ or "").partition("Attributes:")[2])
        texts |= {name: " ".join(text.split()) for name, _, text in (entry.partition(": ") for entry in entries[1:])}
    return texts


def table(kinds: tuple[Any, ...]) -> str:
    """One row for each field. A field that no docstring describes is an error."""
    rows = ["| name and default | | type |", "|---|---|---|"]
    for kind in kinds:
        texts, hints = described(kind), get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = re.sub(r"\b(typing|collections\.abc|pathlib|actors\.core\.\w+)\.", "", str(hints[field.name]))
            hint = re.sub(r"<class '(.*)'>", r"\1", hint).replace("|", "\\|")
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            rows.append(f"| `{field.name}={default!r}` | {texts[field.name]} | `{hint}` |")
    return "\n".join(rows)


def main(folder: Path) -> None:
    """Write HTML pages into a folder, with `index.html` first."""
    for name in pipeline.__all__:  # pdoc looks into the module's dictionary, where lazy names are not yet
        setattr(pipeline, name, getattr(pipeline, name))
    pages = [f"# {title}\n\n{text}\n\n{table(kinds)}\n" for title, text, kinds in TABLES]
    with tempfile.TemporaryDirectory() as temporary:
        tables = Path(temporary, "settings_and_arguments.py")
        tables.write_text('r"""' + "\n".join(pages) + '"""\n')
        warnings.filterwarnings("ignore", "Cannot determine where")  # keys of a TypedDict
        pdoc.render.configure(docformat="google", show_source=False)
        pdoc.pdoc(*MODULES, str(tables), output_directory=folder)
    print(f"{folder / 'index.html'}: the API reference")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
