"""`penstock chat MODEL`: what is checked before torch is loaded, which takes a second or two."""

import argparse

from pipeline.config import Config
from pipeline.tools.commands.chat_lines import check_stdin
from pipeline.tools.commands.progress import LOADING, Progress
from pipeline.tools.commands.prompt import chat_arguments
from pipeline.tools.commands.sampling import sampling_arguments


def chat(options: argparse.Namespace) -> None:
    """Talk. Raises PenstockError naming what can never work, before anything takes time."""
    arguments = sampling_arguments(options)
    Config.from_arguments(options.settings)
    template = chat_arguments(options)
    check_stdin()
    Progress().say(LOADING)
    from pipeline.tools.commands.talk import talk

    talk(options, arguments, template)
