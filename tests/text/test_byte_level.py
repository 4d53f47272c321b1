import json
from pathlib import Path
from typing import Any

import pytest
from text import small_tokenizers as small

from pipeline.text.byte_level import byte_level_engine
from pipeline.text.hugging_face import HuggingFaceEngine
from pipeline.text.merges import Inexact
from pipeline.text.split_patterns import GPT2, LLAMA3
from pipeline.text.tokenizer import load_tokenizer

STRIPPING = {"id": 700, "content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False}
TEMPLATE = {"type": "TemplateProcessing", "special_tokens": {}, "pair": []}
TEXT_A: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
UNUSUAL: dict[str, dict[str, Any]] = {
    "normalizer": {"normalizer": {"type": "Lowercase"}},
    "two normalizers": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
    "prefix space": {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}},
    "no splitting": {"pre_tokenizer": BYTE_LEVEL},
    "no pre-tokenizer": {"pre_tokenizer": None},
    "unknown pre-tokenizer": {"pre_tokenizer": {"type": "Whitespace"}},
    "decoder": {"decoder": {"type": "Fuse"}},
    "stripping token": {"added_tokens": [{**STRIPPING, "normalized": False, "special": True}]},
    "id with a hole": {
        "added_tokens": [{**STRIPPING, "id": 800, "lstrip": False, "normalized": False, "special": True}]
    },
    "two templates": {
        "post_processor": {
            "type": "Sequence",
            "processors": [{**TEMPLATE, "single": [TEXT_A]}, {**TEMPLATE, "single": [TEXT_A]}],
        }
    },
    "text twice": {"post_processor": {**TEMPLATE, "single": [TEXT_A, TEXT_A]}},
    "other post-processor": {
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["a", 1],
            "cls": ["b", 2],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    },
}


def document(**changes: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(small.gpt2().to_str())
    return {**parsed, "added_tokens": [], **changes}


def split(pattern: dict[str, str], behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    steps = [{"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}, BYTE_LEVEL]
    return {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_not_known_to_be_exact_is_refused(changes: dict[str, Any]) -> None:
    byte_level_engine(document(), None)
    with pytest.raises(Inexact):
        byte_level_engine(document(**changes), None)


@pytest.mark.parametrize(
    "name", ["normalizer", "prefix space", "stripping token", "other post-processor", "no splitting"]
)
def test_refused_files_are_read_by_the_package(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.save_document(document(**UNUSUAL[name]), tmp_path), 1000)
    assert isinstance(tokenizer._engine, HuggingFaceEngine)
    reference = small.tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*small.TEXTS, "Upper  <mask> lower"]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text).ids
        assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        split({"Regex": r"\w+|\W+"}),
        split({"String": GPT2}),
        split({"Regex": LLAMA3}, "Removed"),
        split({"Regex": LLAMA3}, "Isolated", invert=True),
        split({"Regex": LLAMA3}, "MergedWithNext"),
    ],
    ids=lambda value: json.dumps(value["pretokenizers"][0])[:90],
)
def test_splits_that_are_refused(pre_tokenizer: dict[str, Any]) -> None:
    with pytest.raises(Inexact, match="split pattern"):
        byte_level_engine(document(pre_tokenizer=pre_tokenizer), None)


def test_a_split_that_removes_all_but_the_matches_is_the_same_split(tmp_path: Path) -> None:
    changed = document(pre_tokenizer=split({"Regex": LLAMA3}, "Removed", invert=True))
    engine = byte_level_engine(changed, None)
    reference = small.tokenizers.Tokenizer.from_str(json.dumps(changed))
    for text in small.TEXTS:
        assert engine.encode(text).tolist() == reference.encode(text).ids


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_models_that_change_words_are_refused(key: str) -> None:
    changed = document()
    changed["model"][key] = "##"
    with pytest.raises(Inexact, match=key):
        byte_level_engine(changed, None)


def test_vocabularies_that_are_refused() -> None:
    missing, foreign, sparse = document(), document(), document()
    missing["model"]["vocab"]["?" * 9] = missing["model"]["vocab"].pop("!")
    with pytest.raises(Inexact, match="lacks single bytes"):
        byte_level_engine(missing, None)
    foreign["model"]["vocab"]["a b"] = len(foreign["model"]["vocab"])
    with pytest.raises(Inexact, match="not written in the byte alphabet"):
        byte_level_engine(foreign, None)
    sparse["model"]["vocab"]["zzzz"] = 5000
    with pytest.raises(Inexact, match="ids of the vocabulary"):
        byte_level_engine(sparse, None)


def test_merges_of_older_files_are_strings() -> None:
    changed = document()
    changed["model"]["merges"] = [" ".join(merge) for merge in changed["model"]["merges"]]
    for text in small.TEXTS:
        assert byte_level_engine(changed, None).encode(text).tolist() == small.gpt2().encode(text).ids


def test_words_that_no_merge_makes_are_found_whole_only_where_merges_are_ignored() -> None:
    for ignore_merges in (False, True):
        changed = document()
        size = len(changed["model"]["vocab"])
        changed["model"]["vocab"]["ĠzqxzqxzQ"] = size
        changed["model"]["ignore_merges"] = ignore_merges
        engine = byte_level_engine(changed, None)
        reference = small.tokenizers.Tokenizer.from_str(json.dumps(changed))
        for text in (" zqxzqxzQ", " zqxzqxzQs", "a zqxzqxzQ b", "zqxzqxzQ"):
            assert engine.encode(text).tolist() == reference.encode(text).ids
        assert (engine.encode(" zqxzqxzQ").tolist() == [size]) is ignore_merges
