"""Mistral's `tekken.json`: words with ranks, after a fixed number of ids for special tokens."""

import binascii
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.small_files import TOKENIZER_LIMIT_BYTES, read_json_file
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.tokenizer_config import AddedToken

BOS_TOKEN = "<s>"
# What files that do not list their special tokens (versions up to v7) mean by the first ids.
_UNLISTED = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)


def tekken_engine(path: Path, vocabulary_size: int) -> BytePairEngine:
    """Build the engine. Every text begins with `<s>`.

    The id of a word is its rank plus the number of special ids; ids without a name are called `<SPECIAL_id>`.
    Raises CheckpointError if the words do not fill the vocabulary in the order of their ranks, or if it is larger than
    the model's, which has `vocabulary_size` ids.
    """
    document = read_json_file(path, TOKENIZER_LIMIT_BYTES)
    config = document["config"]
    special_count = config["default_num_special_tokens"]
    size = config["default_vocab_size"]
    if not 0 <= special_count <= size <= vocabulary_size:  # before any of them becomes a Python object
        raise CheckpointError(
            f"{path}: need default_num_special_tokens and default_vocab_size between 0 and {vocabulary_size}, the ids "
            f"of the model; have {special_count} and {size}"
        )
    special_tokens = _special_tokens(document, special_count)
    word_count = size - special_count
    entries = document["vocab"][:word_count]
    words = [binascii.a2b_base64(entry["token_bytes"]) for entry in entries]
    ranks = {word: rank for rank, word in enumerate(words)}
    if len(ranks) != word_count or [entry["rank"] for entry in entries] != list(range(word_count)):
        raise CheckpointError(f"{path}: need {word_count} words with ranks in order, have {len(ranks)}")
    bos_id = {token.content: token.token_id for token in special_tokens}[BOS_TOKEN]
    return BytePairEngine(
        ranks=ranks,
        token_ids=range(special_count, special_count + word_count),
        pattern=config["pattern"],
        pieces=dict(enumerate(words, start=special_count)),
        added_tokens=special_tokens,
        prefix=[bos_id],
        bos_id=bos_id,
    )


def _special_tokens(document: dict[str, Any], count: int) -> list[AddedToken]:
    listed = document.get("special_tokens")
    named = dict(enumerate(_UNLISTED)) if listed is None else {token["rank"]: token["token_str"] for token in listed}
    if beyond := [content for token_id, content in named.items() if token_id >= count]:
        raise CheckpointError(f"tekken.json: {count} ids for special tokens, and no room for {beyond}")
    return [
        AddedToken(content=named.get(token_id, f"<SPECIAL_{token_id}>"), token_id=token_id) for token_id in range(count)
    ]
