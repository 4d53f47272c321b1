"""`penstock run MODEL`: its options. What it does is imported when it runs, so that `--help` is instant."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.tools.commands.models import MODEL_HELP
from pipeline.tools.commands.options import add_settings, add_trace
from pipeline.tools.commands.progress import say_loading
from pipeline.tools.commands.prompt import add_prompt, read_prompt
from pipeline.tools.commands.sampling import add_sampling, sampling_arguments


def add_run(commands: Any) -> None:
    """Add the command's parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "run",
        usage="%(prog)s MODEL (--prompt TEXT | --prompt-file FILE | --prompt-ids IDS) [options]",
        help="continue a prompt and stream the text",
        description="Continue a prompt. The text goes to stdout as it comes; all else goes to stderr: the plan, "
        "progress, and at the end tokens per second, the time to the first token, and why the text ended. Ctrl-C ends "
        "it early, with all of that, and status 130.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    add_prompt(parser)
    add_sampling(parser)
    add_settings(parser, defaults={"max_requests": 1})  # room for more would be kept from the weights
    output = parser.add_argument_group("what comes out")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    add_trace(output)
    parser.set_defaults(command=run_command)


def run_command(options: argparse.Namespace) -> None:
    """Run, and print. Raises PenstockError naming what can never work, before anything takes time."""
    from pipeline.config import Config
    from pipeline.errors import ConfigError
    from pipeline.system.event_loop import run_async
    from pipeline.system.written_files import check_writable

    arguments = sampling_arguments(options)
    if options.logprobs is not None and not options.json:
        raise ConfigError("--logprobs: need --json, which prints them; have none")
    Config.from_arguments(options.settings)
    if options.trace is not None:
        check_writable(options.trace)
    prompt = read_prompt(options)
    say_loading()
    from pipeline.tools.commands.run_prompt import run

    run_async(run(options, prompt, arguments))
