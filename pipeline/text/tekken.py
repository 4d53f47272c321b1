"""Mistral's `tekken.json`: words with ranks, after a fixed number of ids for special tokens."""

import binascii
import functools
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, RequestError
from pipeline.system.small_files import TOKENIZER_LIMIT_BYTES, read_json_file
from pipeline.text.added_tokens import AddedToken, AddedTokens, Declared
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.detokenizer import ByteLevelDetokenizer
from pipeline.text.tokenizer_config import TokenizerConfig

BOS_TOKEN = "<s>"
# What files that do not list their special tokens (versions up to v7) mean by the first ids.
_UNLISTED = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_PROBE = "".join(
    f"{chr(code)} {chr(code)}a{chr(code)}1 {chr(code) * 3}\n"
    for code in (*range(0x180), *range(0x180, 0xD800, 61), *range(0xE000, 0x20000, 61))
)
"""Text that tells a pattern which leaves something out, where it is not too particular; `encode` tells the rest."""


def tekken_engine(path: Path, config: TokenizerConfig, vocabulary_size: int) -> BytePairEngine:
    """Build the engine. Every text begins with `<s>`.

    The id of a word is its rank plus the number of special ids; ids without a name are called `<SPECIAL_id>`.
    Raises CheckpointError if the words do not fill the vocabulary in the order of their ranks, if it is larger than the
    model's, which has `vocabulary_size` ids, or if the pattern leaves text out.
    """
    document = read_json_file(path, TOKENIZER_LIMIT_BYTES)
    settings = document["config"]
    first, size = settings["default_num_special_tokens"], settings["default_vocab_size"]
    if not 0 <= first <= size <= vocabulary_size:  # before any of them becomes a Python object
        raise CheckpointError(
            f"{path}: need default_num_special_tokens and default_vocab_size between 0 and {vocabulary_size}, the ids "
            f"of the model; have {first} and {size}"
        )
    special_tokens = _special_tokens(path, document, first, config.declared)
    words = _words(path, document, size - first)
    ids = {word: first + rank for rank, word in enumerate(words)}
    added_tokens = AddedTokens(
        special_tokens, config.declared, lambda content: ids.get(content.encode()), range(first, size), size
    ).tokens
    bos_id = {token.content: token.token_id for token in added_tokens}[BOS_TOKEN]
    texts = dict(enumerate(words, start=first)) | {token.token_id: token.piece for token in added_tokens}
    engine = BytePairEngine(
        ranks={word: rank for rank, word in enumerate(words)},
        token_ids=range(first, size),
        pattern=settings["pattern"],
        detokenizer=functools.partial(ByteLevelDetokenizer, texts),
        added_tokens=added_tokens,
        prefix=[bos_id],
        bos_id=bos_id,
    )
    try:
        engine.encode(_PROBE)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return engine


def _words(path: Path, document: dict[str, Any], count: int) -> list[bytes]:
    entries = document["vocab"][:count]
    words = [binascii.a2b_base64(entry["token_bytes"]) for entry in entries]
    if len(set(words)) != count or [entry["rank"] for entry in entries] != list(range(count)):
        raise CheckpointError(f"{path}: need {count} words with ranks in order, have {len(set(words))}")
    return words


def _special_tokens(path: Path, document: dict[str, Any], count: int, declared: Declared) -> list[AddedToken]:
    listed = document.get("special_tokens")
    pairs = [*enumerate(_UNLISTED)] if listed is None else [(token["rank"], token["token_str"]) for token in listed]
    named = dict(pairs)
    if beyond := [content for token_id, content in pairs if not 0 <= token_id < count]:
        raise CheckpointError(f"{path}: {count} ids for special tokens, and no room for {beyond[:20]}")
    if len(named) < len(pairs):
        raise CheckpointError(f"{path}: {len(pairs)} special tokens have {len(named)} ids; need one id for each")
    free = set(range(count)) - named.keys() - {token.token_id for token in declared.with_ids}
    named |= {token_id: f"<SPECIAL_{token_id}>" for token_id in free}
    return [AddedToken(content=content, token_id=token_id) for token_id, content in sorted(named.items())]
