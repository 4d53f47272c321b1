"""`penstock run MODEL`: what is checked before torch is loaded, which takes a second or two."""

import argparse

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.system.event_loop import run_async
from pipeline.system.written_files import check_writable
from pipeline.tools.commands.progress import LOADING, Progress
from pipeline.tools.commands.prompt import messages, read_prompt
from pipeline.tools.commands.sampling import sampling_arguments
from pipeline.tools.commands.text_files import chat_arguments
from pipeline.tools.commands.values import option_of


def run(options: argparse.Namespace) -> None:
    """Run, and print. Raises PenstockError naming what can never work, before anything takes time."""
    arguments = sampling_arguments(options)
    for name in ("logprobs", "prompt_logprobs"):
        if name in arguments and not options.json:
            raise ConfigError(f"{option_of(name)}: need --json, which prints them; have none")
    Config.from_arguments(options.settings)
    if options.trace is not None:
        check_writable(options.trace)
    text = read_prompt(options)
    prompt = text if options.chat is None else messages(options, str(text))
    arguments |= chat_arguments(options)
    Progress().say(LOADING)
    from pipeline.tools.commands.run_prompt import run_prompt

    run_async(run_prompt(options, prompt, arguments))
