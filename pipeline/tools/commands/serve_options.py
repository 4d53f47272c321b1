"""`penstock serve`: its options."""

import functools
from pathlib import Path
from typing import Any

from pipeline.tools.commands.command import Command
from pipeline.tools.commands.options import MODEL_HELP, add_settings
from pipeline.tools.commands.values import from_text


def add_serve(commands: Any) -> None:
    """Add the parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "serve",
        usage="%(prog)s MODEL [options]",
        help="answer OpenAI's clients over HTTP, with a chat for the browser",
        description="Answer OpenAI's clients over HTTP, at /v1; a chat for the browser is at /. The port listens at "
        "once, and answers 503 while the model opens. Ctrl-C and SIGTERM let running requests finish; a second one "
        "ends them at once. The exit status is 0 when all have finished.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    group = parser.add_argument_group("how it is served")
    add = group.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1; 0.0.0.0 is reached from elsewhere")
    add("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    add(
        "--api-key",
        action="append",
        metavar="KEY",
        help="ask for this key, as often as you like; default PENSTOCK_API_KEY, with commas between keys",
    )
    add("--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin ask; * is any")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name too, as often as you like; * is any. Where only this machine can ask, the default is "
        "localhost; addresses are always answered to",
    )
    add(
        "--served-name",
        action="append",
        default=[],
        metavar="NAME",
        help="what clients call the model, as often as you like; default the last part of MODEL",
    )
    add("--template", type=Path, metavar="FILE", help="a chat template, instead of the model's")
    seconds = "how long running requests may take to finish after Ctrl-C or SIGTERM; default 30"
    add("--drain-seconds", type=float, default=30.0, metavar="S", help=seconds)
    _add_replicas(parser.add_argument_group("replicas, on Ray Serve (needs ray[serve])"))
    add_settings(parser, defaults={"share_prefixes": True})
    parser.set_defaults(command=Command("serve", "serve"))


def _add_replicas(group: Any) -> None:
    group.add_argument(
        "--replicas",
        type=functools.partial(from_text, int),
        metavar="N",
        help="serve the model N times, or auto: as often as requests need. Requests that begin alike go to "
        "the same one. On one machine each needs a --host-memory",
    )
    group.add_argument(
        "--replica-cpus", type=int, metavar="N", help="cores of each; default an equal part of a machine's"
    )
