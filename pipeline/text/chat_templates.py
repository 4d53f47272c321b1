"""Chat templates of a checkpoint folder: where they lie, and which of them a call gets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import CheckpointError, RequestError
from pipeline.system.small_files import CONFIG_LIMIT_BYTES, read_small_file
from pipeline.text.tokenizer_config import TOKENIZER_CONFIG, TokenizerConfig

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
DEFAULT, WITH_TOOLS = "default", "tool_use"
MISSING = f"{TEMPLATE_FILE}, or chat_template in {TOKENIZER_CONFIG}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplates:
    """The templates of a folder by their names, and its special tokens, which they read as variables.

    Where there is one it is called "default". `where` says what file an error is about.
    """

    where: str = "the checkpoint"
    named: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def choose(self, chosen: str | None, *, with_tools: bool) -> str:
        """Return the text of the template that is `chosen`, by its name or as a text; or else the one for the call.

        Raises RequestError where there is none.
        """
        if chosen is not None:
            return self.named.get(chosen, chosen)
        names = (WITH_TOOLS, DEFAULT) if with_tools and self.named.keys() - {DEFAULT} else (DEFAULT,)
        found = next((self.named[name] for name in names if name in self.named), None)
        if found is None:
            have = f"only templates called {', '.join(sorted(self.named))}" if self.named else "none"
            to_do = "give one of these names" if self.named else "give the text of one"
            raise RequestError(
                f"{self.where}: need a chat template ({MISSING}), have {have}; {to_do} as chat_template, on the "
                "command line as --template FILE, or generate from a text of your own"
            )
        return found


NO_TEMPLATES = ChatTemplates()


def read_chat_templates(folder: Path, config: TokenizerConfig) -> ChatTemplates:
    """Read the templates of a folder: those in files of their own, or else those of `tokenizer_config.json`.

    Raises CheckpointError for what is no template, and where a file cannot be read.
    """
    named = _in_files(folder)
    where = str(folder if not named else folder / TEMPLATE_FILE)
    if not named and config.chat_template is not None:
        where = str(folder / TOKENIZER_CONFIG)
        named = _in_config(where, config.chat_template)
    return ChatTemplates(where=where, named=named, special_tokens=config.special_tokens)


def _in_files(folder: Path) -> dict[str, str]:
    files = {DEFAULT: folder / TEMPLATE_FILE} if os.path.lexists(folder / TEMPLATE_FILE) else {}
    files |= {path.name.removesuffix(".jinja"): path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    return {name: _read(path) for name, path in files.items()}


def _read(path: Path) -> str:
    try:
        return read_small_file(path, CONFIG_LIMIT_BYTES).decode()
    except UnicodeDecodeError as error:
        have = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise CheckpointError(f"{path}: need UTF-8 text, have {have}; fetch the file again") from error


def _in_config(where: str, value: object) -> dict[str, str]:
    """One text, a list of objects with a name and a template, or an object of texts by their names."""
    named: object = {DEFAULT: value} if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in value):
        named = {one["name"]: one["template"] for one in value}
    if not isinstance(named, dict) or not all(isinstance(part, str) for pair in named.items() for part in pair):
        need = "a text, or a list of objects with a name and a template"
        raise CheckpointError(f"{where}: chat_template: need {need}; have {value!r:.200}; correct the file")
    return named
