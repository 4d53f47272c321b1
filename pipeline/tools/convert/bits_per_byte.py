"""How well a model foretells a text: the bits that it would take to write the text down, by the model's own odds."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from pipeline.api import Model
from pipeline.errors import ConfigError
from pipeline.generation.folder import no_tokenizer, read_tokenizer
from pipeline.models.model_config import read_config
from pipeline.system.small_files import read_small_file

TEXT_LIMIT_BYTES = 16 << 20
SCORED_TOKENS = 64
"""Of one request."""
CONTEXT_TOKENS = 256
"""That a request has before these, where the text has so many."""


def read_text(path: Path, folder: Path) -> str:
    """The text in a file, for the model in a folder.

    Raises CheckpointError where it cannot be read or the model takes none, ConfigError where it is no text.
    """
    try:
        text = read_small_file(path, TEXT_LIMIT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: need UTF-8 text ({error}); convert it, or give another file") from error
    if read_tokenizer(folder, read_config(folder).vocabulary_size) is None:
        raise no_tokenizer(folder)
    if not text:
        raise ConfigError(f"{path}: need a text, is empty; give another file")
    return text


async def bits_per_byte(
    model: Model, text: str, progress: Callable[[int, int], None] = lambda done_tokens, tokens: None
) -> float:
    """The bits of all tokens of a text but the first, which is the BOS token where the model has one, over its bytes.

    `progress` gets how many tokens of how many are done. Raises CheckpointError where there is no tokenizer.
    """
    token_ids = model.tokenizer.encode(text)
    context_tokens = max(1, min(CONTEXT_TOKENS, model.runtime.context_tokens - SCORED_TOKENS))
    turns, done_tokens = asyncio.Semaphore(model.runtime.settings.max_requests), 0

    async def bits(first: int) -> float:
        nonlocal done_tokens
        context, scored = token_ids[max(0, first - context_tokens) : first], token_ids[first : first + SCORED_TOKENS]
        async with turns:
            output = await model.generate([*context, *scored], max_new_tokens=0, prompt_logprobs=0)
        done_tokens += len(scored)
        progress(done_tokens, len(token_ids) - 1)
        found = zip(scored, (output.prompt_logprobs or ())[len(context) :], strict=True)
        return math.fsum(-logprobs[token_id] for token_id, logprobs in found if logprobs) / math.log(2)

    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(bits(first)) for first in range(1, len(token_ids), SCORED_TOKENS)]
    return math.fsum(part.result() for part in parts) / len(text.encode())
