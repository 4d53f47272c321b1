"""`tokenizer.model` in tiktoken's format: one line for each token, its bytes in base64 and its rank."""

import binascii
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.system.small_files import TOKENIZER_LIMIT_BYTES, read_small_file
from pipeline.text.added_tokens import AddedToken, AddedTokens
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.detokenizer import ByteLevelDetokenizer
from pipeline.text.split_patterns import LLAMA3
from pipeline.text.tokenizer_config import TokenizerConfig

LLAMA3_RANKS = 128_000
_RESERVED = 256
# The names of Llama 3.1 and later for the first of the 256 ids after the ranks; the rest are numbered from 2 on.
_NAMED = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"),
)
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+")


def is_rank_file(path: Path) -> bool:
    """Whether the file is in tiktoken's format; SentencePiece's `tokenizer.model` is binary."""
    first = read_small_file(path, TOKENIZER_LIMIT_BYTES)[:4096].splitlines()[:1]
    return bool(first and _LINE.fullmatch(first[0]))


def rank_file_engine(path: Path, config: TokenizerConfig, vocabulary_size: int) -> BytePairEngine:
    """Build the engine: Llama 3's pattern, and special tokens from `tokenizer_config.json`, else Meta's own list.

    Begins every text with the BOS token where `add_bos_token` says so; Meta's own list is Meta's convention: always.
    Raises CheckpointError that names the line which is broken, or for many more lines than the model has ids.
    """
    ranks = _read_ranks(path, vocabulary_size)
    bos_token, add_bos = config.bos_token, config.add_bos_token
    listed = _llama3_tokens(config.declared.with_ids) if len(ranks) == LLAMA3_RANKS else []
    if listed and not config.declared.with_ids:
        bos_token = bos_token or "<|begin_of_text|>"
        add_bos = True if add_bos is None else add_bos
    added_tokens = AddedTokens(
        listed, config.declared, lambda content: ranks.get(content.encode()), range(len(ranks)), len(ranks)
    ).tokens
    bos_id = next((token.token_id for token in added_tokens if token.content == bos_token), None)
    if add_bos and bos_id is None:
        raise CheckpointError(f"tokenizer_config.json: add_bos_token is set, but bos_token {bos_token!r} has no id")
    texts = {rank: word for word, rank in ranks.items()} | {token.token_id: token.piece for token in added_tokens}
    return BytePairEngine(
        ranks=ranks,
        token_ids=range(len(ranks)),
        pattern=LLAMA3,
        detokenizer=functools.partial(ByteLevelDetokenizer, texts),
        added_tokens=added_tokens,
        prefix=[bos_id] if add_bos and bos_id is not None else [],
        bos_id=bos_id,
    )


def _read_ranks(path: Path, vocabulary_size: int) -> dict[bytes, int]:
    raw = read_small_file(path, TOKENIZER_LIMIT_BYTES)
    if (ends := raw.count(b"\n") + raw.count(b"\r")) > 2 * vocabulary_size:  # before any becomes a Python object
        raise CheckpointError(f"{path}: has {ends} ends of lines, the model only {vocabulary_size} ids")
    ranks: dict[bytes, int] = {}
    lines = raw.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            word, rank = line.split()
            ranks[binascii.a2b_base64(word, strict_mode=True)] = int(rank)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}: need base64 bytes and a rank, have {line[:80]!r}") from error
    if set(ranks.values()) != set(range(len(lines))):
        raise CheckpointError(f"{path}: need {len(lines)} words with ranks 0 to {len(lines) - 1}, each once")
    return ranks


def _llama3_tokens(declared: Sequence[AddedToken]) -> list[AddedToken]:
    """Meta's tokens, without those whose name or id is declared."""
    names, ids = {token.content for token in declared}, {token.token_id for token in declared}
    numbered = [f"<|reserved_special_token_{number}|>" for number in range(2, 2 + _RESERVED - len(_NAMED))]
    tokens = [
        AddedToken(content=content, token_id=LLAMA3_RANKS + index) for index, content in enumerate([*_NAMED, *numbered])
    ]
    return [token for token in tokens if token.content not in names and token.token_id not in ids]
