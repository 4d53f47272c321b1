"""What lies in a checkpoint folder beside the weights: the sampling defaults and the tokenizer."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, ConfigError, PenstockError, RequestError, shown
from pipeline.generation.parameters import SamplingParameters
from pipeline.models.generation_settings import read_not_followed, read_rules
from pipeline.models.model_config import read_config, read_generation_defaults, read_settings
from pipeline.system.limits import limits_named
from pipeline.system.small_files import require_folder
from pipeline.text.chat_templates import read_chat_templates
from pipeline.text.tokenizer import Tokenizer, load_tokenizer
from pipeline.text.tokenizer_config import read_tokenizer_config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")
TOKEN_BYTES = (600, 300, 300)
"""What a tokenizer takes for each token, by its file, beside what libraries have room for: with 128,000 tokens a
tokenizer.json took 137 MB while it was read, and a tokenizer.model 60 MB."""
logger = logging.getLogger("penstock")


@contextlib.contextmanager
def naming_files(folder: Path) -> Iterator[None]:
    """Raise what the file system says as CheckpointError, with the name of the file, or else of the folder.

    Raises ResourceError where the process has reached a limit, which is no fault of the files.
    """
    require_folder(folder, "a folder with config.json and safetensors files")
    with limits_named():
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: {error.strerror}") from error


def read_defaults(folder: Path) -> dict[str, Any]:
    """The sampling defaults that generation_config.json sets, which are logged, as is what is not followed.

    Raises ConfigError.
    """
    model = read_config(folder)
    if not model.eos_ids:
        logger.warning(
            "%s names no end token that is one of the model's %d: an answer ends by its length, or where a call says",
            folder,
            model.vocabulary_size,
        )
    defaults = {**read_generation_defaults(folder), **read_rules(folder, model.vocabulary_size)}
    try:
        SamplingParameters.from_arguments(defaults, {}).fitted(model.vocabulary_size, model.eos_ids)
    except RequestError as error:
        raise ConfigError(f"{folder / 'generation_config.json'}: {error}; correct the file") from error
    if defaults:
        logger.warning("generation_config.json sets the sampling defaults: %s", _listed(defaults))
    if not_followed := read_not_followed(folder):
        logger.warning(
            "generation_config.json asks for %s, which is not done here: texts may differ from those of transformers",
            _listed(not_followed),
        )
    return defaults


def check_chat(folder: Path, chat_template: str | None) -> None:
    """Refuse what can answer no chat, without reading the tokenizer: there must be one, and a template.

    Raises RequestError, and CheckpointError where files are broken.
    """
    with naming_files(folder):
        read_settings(folder)  # of a folder that is no checkpoint it says what there is
        if not any(os.path.lexists(folder / name) for name in TOKENIZER_FILES):
            raise no_tokenizer(folder)
        read_chat_templates(folder, read_tokenizer_config(folder)).choose(chat_template, with_tools=False)


def _listed(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in settings.items())


def no_tokenizer(folder: Path) -> CheckpointError:
    """What to tell a caller that asks for the tokenizer of a folder that has none."""
    return CheckpointError(
        f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): add its files and open the model again, or give "
        "and take token ids"
    )


def tokenizer_bytes(folder: Path, vocabulary_size: int) -> int:
    """About the memory that its tokenizer takes; 0 where it has none."""
    found = (each for name, each in zip(TOKENIZER_FILES, TOKEN_BYTES, strict=True) if os.path.lexists(folder / name))
    return vocabulary_size * next(found, 0)


def read_tokenizer(folder: Path, vocabulary_size: int) -> Tokenizer | None:
    """The tokenizer. A folder without its files serves token ids only; a broken tokenizer is an error.

    Raises PenstockError, which names the folder, and OSError.
    """
    if not any(os.path.lexists(folder / name) for name in TOKENIZER_FILES):
        logger.warning("%s has no tokenizer: prompts must be token ids", folder)
        return None
    try:
        return load_tokenizer(folder, vocabulary_size)
    except PenstockError as error:
        message = str(error) if str(folder) in str(error) else f"{folder}: {error}"
        raise type(error)(message) from error
