"""A byte-level BPE vocabulary of 4096 tokens, trained with ``tokenizers`` and written in tiktoken's format."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import tiktoken
import tokenizers

VOCABULARY_SIZE = 4096
BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID = "<|begin_of_text|>", VOCABULARY_SIZE - 2
END_OF_TEXT, END_OF_TEXT_ID = "<|end_of_text|>", VOCABULARY_SIZE - 1
# How Llama 3 cuts text into words before any merge.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_ranks(texts: Iterable[str]) -> dict[bytes, int]:
    """Learn the merges; returns bytes -> rank: the 256 single bytes first, then the merges in the order learnt."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BEGIN_OF_TEXT_ID,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    byte_of = byte_of_character()
    by_id = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    merged = [bytes(byte_of[character] for character in token) for token, _ in by_id if len(token) > 1]
    tokens = [bytes([value]) for value in range(256)] + merged
    if len(set(tokens)) != BEGIN_OF_TEXT_ID:
        raise SystemExit(f"the text yields {len(set(tokens))} tokens, and {BEGIN_OF_TEXT_ID} are needed: use more text")
    return {token: rank for rank, token in enumerate(tokens)}


def byte_of_character() -> dict[str, int]:
    """Undo byte-level BPE's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


def write_tokenizer(ranks: dict[bytes, int], folder: Path) -> None:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("".join(lines), encoding="ascii", newline="\n")
    settings = {
        "add_bos_token": True,
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "added_tokens_decoder": {
            str(BEGIN_OF_TEXT_ID): {"content": BEGIN_OF_TEXT, "special": True},
            str(END_OF_TEXT_ID): {"content": END_OF_TEXT, "special": True},
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_encoding(folder: Path) -> tiktoken.Encoding:
    """Open what ``write_tokenizer`` wrote with the engine that the pipeline uses."""
    lines = (folder / "tokenizer.model").read_text(encoding="ascii").splitlines()
    return tiktoken.Encoding(
        name="bundled",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)},
        special_tokens={BEGIN_OF_TEXT: BEGIN_OF_TEXT_ID, END_OF_TEXT: END_OF_TEXT_ID},
        explicit_n_vocab=VOCABULARY_SIZE,
    )


def encode_documents(encoding: tiktoken.Encoding, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, from begin-of-text to end-of-text."""
    return [[BEGIN_OF_TEXT_ID, *ids, END_OF_TEXT_ID] for ids in encoding.encode_ordinary_batch(texts)]
