"""`penstock run`: where the prompt comes from."""

import argparse
import sys
from pathlib import Path

from pipeline.errors import RequestError, shown
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.text_files import text_of, text_of_file

STDIN = "-"


def add_prompt(parser: Parser) -> None:
    """Add the options for the prompt, of which one must be given where it does not come through a pipe."""
    group = parser.add_argument_group("the prompt, taken as it is, with spaces and newlines at its end")
    one = group.add_mutually_exclusive_group(required=sys.stdin is None or sys.stdin.isatty())
    one.add_argument("--prompt", metavar="TEXT", help="the text to continue; - reads it from stdin, as does a pipe")
    one.add_argument("--raw", metavar="TEXT", help="the same, and no word about the chat template that a model has")
    one.add_argument("--prompt-file", type=Path, metavar="FILE", help="read it from a file of UTF-8 text")
    one.add_argument("--prompt-ids", metavar="IDS", help="token ids, as 1,2,3, for a model without a tokenizer")
    one.add_argument("--chat", metavar="TEXT", help="answer it by the chat template; - reads it from stdin")
    group.add_argument("--system", metavar="TEXT", help="with --chat: what the model is told before")
    group.add_argument("--template", type=Path, metavar="FILE", help="with --chat: a template, instead of the model's")


def read_prompt(options: argparse.Namespace) -> str | list[int]:
    """The text, or the token ids. Raises RequestError, naming the option, for what is neither, or cannot be read."""
    for option, value in (("--system", options.system), ("--template", options.template)):
        if value is not None and options.chat is None:
            raise RequestError(f"{option}: need --chat TEXT, have another prompt")
    if options.prompt_ids is not None:
        try:
            return [int(part) for part in options.prompt_ids.split(",") if part.strip()]
        except ValueError as error:
            raise RequestError(f"--prompt-ids: need token ids, as 1,2,3; have {shown(options.prompt_ids)}") from error
    given: list[str | None] = [options.prompt, options.raw, options.chat]
    piped = not any(one is not None for one in (*given, options.prompt_file))
    if piped or STDIN in given or options.prompt_file == Path(STDIN):
        if sys.stdin is None:
            option = "--prompt" if options.chat is None else "--chat"
            raise RequestError(f"{option} -: stdin is closed; give the text, or --prompt-file FILE")
        if sys.stdin.isatty():
            print("reading the prompt from the terminal; Ctrl-D on a line of its own ends it", file=sys.stderr)
        text = text_of("stdin", sys.stdin.buffer)
        if piped and not text:
            raise RequestError("need a prompt: --prompt TEXT, --chat TEXT, or a text through a pipe; have none")
        return text
    if options.prompt_file is None:
        return next(one for one in given if one is not None)
    return text_of_file("--prompt-file", options.prompt_file)


def messages(options: argparse.Namespace, text: str) -> list[dict[str, str]]:
    """The messages that --chat, whose text has been read, and --system stand for."""
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, {"role": "user", "content": text}]
