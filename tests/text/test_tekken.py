import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from text import small_tokenizers as small

from pipeline.errors import CheckpointError, RequestError
from pipeline.text.split_patterns import MISTRAL
from pipeline.text.tokenizer import load_tokenizer

WORDS = small.ranked_words(small.mistral())
SPECIAL = 24


def save(folder: Path, special_tokens: list[str] | None = None, **config: Any) -> Path:
    """A tekken.json with ten words more than the vocabulary has room for, as the real ones have."""
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(WORDS)
    ]
    sizes = {"default_vocab_size": len(WORDS) - 10 + SPECIAL, "default_num_special_tokens": SPECIAL}
    document: dict[str, Any] = {"config": {"pattern": MISTRAL, "version": "v3", **sizes, **config}, "vocab": entries}
    if special_tokens is not None:
        document["special_tokens"] = [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(special_tokens)
        ]
    (folder / "tekken.json").write_text(json.dumps(document))
    return folder


def test_ids_are_ranks_after_the_special_tokens_and_every_text_begins_with_bos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, ["<unk>", "<s>", "</s>", "[INST]"]), 1000)
    ranks = {word: rank for rank, word in enumerate(WORDS[:-10])}
    reference = tiktoken.Encoding("reference", pat_str=MISTRAL, mergeable_ranks=ranks, special_tokens={})
    for text in small.TEXTS:
        assert tokenizer.encode(text) == [1] + [rank + SPECIAL for rank in reference.encode_ordinary(text)]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos_id == 1
    assert tokenizer.special_ids == set(range(SPECIAL))


def test_special_tokens_are_found_in_the_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, ["<unk>", "<s>", "</s>", "[INST]"]), 1000)
    assert tokenizer.encode("</s>[INST]<SPECIAL_23>") == [1, 2, 3, 23]
    assert tokenizer.encode("[/INST]")[1] >= SPECIAL


def test_files_that_do_not_list_special_tokens_mean_the_usual_ones(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path), 1000)
    assert tokenizer.encode("[INST][/INST][TOOL_CONTENT]<SPECIAL_20>") == [1, 3, 4, 19, 20]


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        (["<unk>", "<s>"], {"default_vocab_size": 5000}, r"need 4976 words with ranks in order, have \d+"),
        (["<unk>", "<s>", "a", "b"], {"default_num_special_tokens": 2}, r"2 ids for special tokens, and no room for"),
        (["<unk>"], {}, "malformed"),
        (["<unk>", "<s>"], {"pattern": "("}, "malformed"),
        (["<unk>", "<s>"], {"default_vocab_size": 100}, r"no token for byte 0x"),
    ],
)
def test_broken_files(tokens: list[str], config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(save(tmp_path, tokens, **config), 10_000)


def test_a_pattern_that_overflows_the_engine_is_an_error_of_the_request(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path, pattern=r"(?:a(?!c))+|[\s\S]"), 1000)
    assert tokenizer.decode(tokenizer.encode("a" * 1000 + "b")) == "a" * 1000 + "b"
    with pytest.raises(RequestError, match="the tokenizer cannot take this text"):
        tokenizer.encode("a" * 3_000_000)


@pytest.mark.parametrize(
    ("special", "size"), [(3_000_000, 3_000_256), (10**12, 10**12 + 256), (-5, 251), (24, 10), (24, 1001)]
)
def test_numbers_that_are_loops_are_held_to_the_ids_of_the_model(special: int, size: int, tmp_path: Path) -> None:
    folder = save(tmp_path, default_num_special_tokens=special, default_vocab_size=size)
    with pytest.raises(CheckpointError, match=rf"between 0 and 1000, the ids of the model; have {special} and {size}"):
        load_tokenizer(folder, 1000)
