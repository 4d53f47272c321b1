"""`penstock chat MODEL`: what is checked before torch is loaded, which takes a second or two."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError, RequestError
from pipeline.generation.session_file import open_session
from pipeline.system.written_files import check_writable
from pipeline.tools.commands.chat_lines import check_stdin
from pipeline.tools.commands.progress import LOADING, Progress
from pipeline.tools.commands.sampling import sampling_arguments
from pipeline.tools.commands.text_files import chat_arguments


def chat(options: argparse.Namespace) -> None:
    """Talk. Raises PenstockError naming what can never work, before anything takes time."""
    arguments = sampling_arguments(options)
    if Config.from_arguments(options.settings).cluster is not None and options.session is not None:
        raise ConfigError("--session: KV blocks of a model on a cluster are on its nodes; keep messages, by /save FILE")
    template = chat_arguments(options)
    if options.recompute and options.session is None:
        raise RequestError("--recompute: need --session FILE, have none")
    messages = None if options.session is None else _check_session(options.session)
    check_stdin()
    Progress().say(LOADING)
    from pipeline.tools.commands.talk import talk

    talk(options, arguments, template, messages)


def _check_session(path: Path) -> list[dict[str, Any]] | None:
    """The messages of a session; None where none is there yet. Raises RequestError and ConfigError."""
    check_writable(path)
    if not os.path.lexists(path):
        return None
    with contextlib.closing(open_session(path)) as file:
        return [dict(one) for one in file.header.messages]
