"""How `run` and `chat` choose tokens: fields of `SamplingParameters` are options, which that class checks."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import RequestError
from pipeline.generation.parameters import ALIASES, NUMBER_RANGES, WHOLE_RANGES, SamplingParameters
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.values import from_text, kinds_of, option_of, stands_for

HELP = {
    "max_new_tokens": ("N", "tokens to generate at most"),
    "min_new_tokens": ("N", "tokens to generate at least, where no text of --stop comes"),
    "temperature": ("T", "0 takes the most likely token"),
    "top_k": ("K", "choose from the K most likely tokens; 0 is off"),
    "top_p": ("P", "choose from the most likely tokens that have this probability together"),
    "min_p": ("P", "leave out tokens less likely than this share of the most likely one"),
    "repetition_penalty": ("X", "above 1 makes tokens of prompt and answer less likely"),
    "presence_penalty": ("X", "above 0 makes tokens of the answer less likely"),
    "frequency_penalty": ("X", "the same, by how often they came"),
    "logit_bias": ("ID:X", "add X, from -100 to 100, to the logit of a token; as often as you like"),
    "stop": ("TEXT", "end before this text; as often as you like"),
    "stop_token_ids": ("IDS", "end with one of these token ids, as 1,2,3"),
    "ignore_eos": ("", "go on where the model would end"),
    "seed": ("N", "the same seed gives the same tokens"),
    "logprobs": ("N", "with --json: log-probabilities of the chosen and the N most likely tokens"),
    "prompt_logprobs": ("N", "with --json: the same of the tokens of the prompt"),
    "suppress_tokens": ("IDS", "token ids that never come, as 1,2,3"),
    "begin_suppress_tokens": ("IDS", "token ids that do not come first"),
    "no_repeat_ngram_size": ("N", "no run of N tokens comes twice; 0 is off"),
    "bad_words_ids": ("IDS", "token ids that do not come in this order; as often as you like"),
    "forced_bos_token_id": ("ID", "the token that comes first behind a prompt of one token"),
    "forced_eos_token_id": ("ID", "the token that comes last where the length ends the answer"),
}
"""By field, the word that stands for the value in the help, and the help."""
OPTIONS = [field for field in fields(SamplingParameters) if field.name in HELP]
"""All but functions, which only a program can give."""


def add_sampling(parser: Parser, without: Collection[str] = (), defaults: Mapping[str, str] | None = None) -> None:
    """An option for each field, named alike, but for those that the command is `without`.

    `defaults` are the words for those that the command itself has.
    """
    group = parser.add_argument_group(
        "how tokens are chosen", "What is not given is as generation_config.json says, or else as said here."
    )
    also = {name: alias for alias, name in ALIASES.items()}
    for field in OPTIONS:
        if field.name in without:
            continue
        metavar, what = HELP[field.name]
        names = [option_of(name) for name in (field.name, also.get(field.name)) if name]
        if field.default is False:
            group.add_argument(*names, action="store_true", default=None, help=what)
            continue
        repeated, hint = _hint(field.name)
        group.add_argument(
            *names,
            type=partial(_value, field.name, hint),
            action="append" if repeated else "store",
            metavar=metavar,
            help=what + _range(field.name, (defaults or {}).get(field.name, field.default)),
        )


def sampling_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the call that were given. Raises RequestError for a value that can never work."""
    given = {field.name: getattr(options, field.name, None) for field in OPTIONS}
    arguments = {name: value for name, value in given.items() if value is not None}
    SamplingParameters.from_arguments({}, arguments)
    return arguments


def _hint(name: str) -> tuple[bool, Any]:
    """Return whether the option may be given more than once, and the type of the value each time."""
    hint = get_type_hints(SamplingParameters)[name]
    for kind in kinds_of(hint):
        if get_origin(kind) is tuple and (get_args(kind)[0] is str or get_origin(get_args(kind)[0]) is tuple):
            return True, get_args(kind)[0]
    return False, hint


def _value(name: str, hint: Any, text: str) -> Any:
    value = from_text(hint, text)
    if not stands_for(hint, value):
        try:
            SamplingParameters.from_arguments({}, {name: value})  # says what is needed
        except RequestError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _range(name: str, default: object) -> str:
    low, high = NUMBER_RANGES.get(name) or WHOLE_RANGES.get(name) or (None, None)
    parts = [] if low is None or high is None or high > 1000 else [f"{low:g} to {high:g}"]
    parts += [] if default in (None, ()) else [f"default {default if isinstance(default, str) else f'{default:g}'}"]
    return f"; {', '.join(parts)}" if parts else ""
