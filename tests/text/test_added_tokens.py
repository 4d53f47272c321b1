"""Tokens that only the files beside the vocabulary declare: as transformers.AutoTokenizer has them, on every path."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from text import small_tokenizers as small

from pipeline.errors import CheckpointError, ConfigError
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.hugging_face import HuggingFaceEngine
from pipeline.text.tokenizer import load_tokenizer

STYLES = [small.gpt2, small.llama3, small.qwen2, small.smollm, small.mistral, small.llama2]
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "image_token"]
NEW = ["<new>", "<|im_start|>", "<pad>"]


def draw_flags(rng: random.Random) -> dict[str, bool]:
    odd = rng.random() < 0.3
    flags = {name: odd and rng.random() < 0.4 for name in ("single_word", "lstrip", "rstrip")}
    return flags | {name: rng.random() < 0.5 for name in ("normalized", "special") if rng.random() < 0.8}


def draw_token(rng: random.Random, content: str, typed: bool) -> str | dict[str, Any]:
    if rng.random() < 0.5:
        return content
    return {"content": content, **draw_flags(rng), **({"__type": "AddedToken"} if typed else {})}


def draw_folder(rng: random.Random, build: small.Build, folder: Path) -> list[str]:
    """Write files that declare old and new tokens in one of three ways; return what may stand in a text."""
    tokenizer = build()
    size = tokenizer.get_vocab_size()
    old = [token.content for token in tokenizer.get_added_tokens_decoder().values()] + ["the", "self", "in"]
    new = rng.sample(NEW, rng.randint(0, len(NEW)))
    ids = {token: token_id for token in old if (token_id := tokenizer.token_to_id(token)) is not None}
    ids |= {token: size + index for index, token in enumerate(new)}
    known = [*ids]
    config: dict[str, Any] = {name: draw_token(rng, rng.choice([*known, "<named>"]), True) for name in NAMES}
    config = {name: token for name, token in config.items() if rng.random() < 0.35}
    if rng.random() < 0.4:
        key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        config[key] = [draw_token(rng, token, True) for token in rng.sample(known, 2)]
    way = rng.choice(["decoder", "older", "named"])
    if way == "decoder":
        chosen = [token for token in known if token in new or rng.random() < 0.4]
        config["added_tokens_decoder"] = {str(ids[token]): {"content": token, **draw_flags(rng)} for token in chosen}
    if way == "older":
        (folder / "added_tokens.json").write_text(json.dumps({token: ids[token] for token in new}))
    if way != "named":
        older = {name: draw_token(rng, rng.choice([*known, "<older>"]), False) for name in NAMES if rng.random() < 0.2}
        (folder / "special_tokens_map.json").write_text(json.dumps(older))
    small.save(tokenizer, folder, tokenizer_class="PreTrainedTokenizerFast", **config)
    return [*known, "<named>", "<older>"]


@pytest.mark.parametrize("build", STYLES, ids=lambda build: build.__name__)
def test_declared_tokens_are_those_of_transformers(build: small.Build, tmp_path: Path) -> None:
    rng = random.Random(build.__name__)
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokens = draw_folder(rng, build, folder)
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer = load_tokenizer(folder, 1000)
        for _ in range(5):
            text = "".join(rng.choices([*tokens, " ", "  ", "a", "\n", "hello the", "é"], k=rng.randint(1, 8)))
            ids = reference.encode(text)
            assert tokenizer.checkpoint_ids(text).tolist() == ids, (folder, text)
            assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True), (folder, text)


def test_new_tokens_do_not_need_the_package(tmp_path: Path) -> None:
    size = small.qwen2().get_vocab_size()
    declared = {str(size): {"content": "<|im_start|>", **PLAIN}}
    small.save(small.qwen2(), tmp_path, added_tokens_decoder=declared, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(tmp_path, 1000)
    assert isinstance(tokenizer._engine, BytePairEngine)
    assert tokenizer.encode("<|im_start|><|im_end|>") == [size, size + 1]
    assert {size, size + 1} <= tokenizer.special_ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_with_flags_are_left_to_the_package(flag: str, tmp_path: Path) -> None:
    size = small.qwen2().get_vocab_size()
    declared = {str(size): {"content": "<x>", **PLAIN, flag: True}}
    small.save(small.qwen2(), tmp_path, added_tokens_decoder=declared)
    assert isinstance(load_tokenizer(tmp_path, 1000)._engine, HuggingFaceEngine)


def qwen2_ids(*contents: str) -> list[int]:
    return [small.qwen2().token_to_id(content) for content in contents]


END, TOOL = qwen2_ids("<|end|>", "<tool_call>")
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "other content": ({"added_tokens_decoder": {str(END): {"content": "<x>", **PLAIN}}}, f"id {END}.*of '<\\|end\\|>'"),
    "other id": ({"added_tokens_decoder": {str(TOOL): {"content": "<|end|>", **PLAIN}}}, f"id {TOOL}.*has id {END}"),
    "a word's id": ({"added_tokens_decoder": {"300": {"content": "<x>", **PLAIN}}}, "id 300.*a token of the vocab"),
    "ids left out": ({"added_tokens_decoder": {"900": {"content": "<x>", **PLAIN}}}, r"has id 900.*get 708"),
    "no id": ({"added_tokens_decoder": {"-1": {"content": "<x>", **PLAIN}}}, "need the id of a token, have '-1'"),
    "no text": ({"added_tokens_decoder": {"900": {"special": True}}}, "need the text of a token"),
    "no flag": ({"bos_token": {"content": "<x>", "lstrip": 1}}, "'<x>': lstrip: need true or false"),
    "no text in a list": ({"additional_special_tokens": [7]}, "need the text of a token.*have 7"),
    "no switch": ({"add_bos_token": "yes"}, "add_bos_token: need true or false, have 'yes'"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_files_that_contradict_each_other_are_refused(what: str, tmp_path: Path) -> None:
    config, says = CONTRADICTIONS[what]
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(small.save(small.qwen2(), tmp_path, **config), 1000)


def test_an_id_that_tokenizer_json_itself_leaves_out_is_refused(tmp_path: Path) -> None:
    document = json.loads(small.llama2().to_str())
    document["added_tokens"][-1]["id"] += 5
    with pytest.raises(CheckpointError, match=r"'<tool▁call>' has id 343 in the files, but would get 338"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


def save_tekken(folder: Path, build: small.Build) -> Path:
    words = small.ranked_words(build())
    sizes = {"default_vocab_size": len(words) + 20, "default_num_special_tokens": 20}
    entries = [{"rank": rank, "token_bytes": base64.b64encode(word).decode()} for rank, word in enumerate(words)]
    config = {"pattern": small.split_patterns.MISTRAL, **sizes}
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": entries}))
    return folder


@pytest.mark.parametrize("beside", ["tekken.json", "tokenizer.model"])
def test_tokenizer_json_is_the_truth_whatever_lies_beside_it(beside: str, tmp_path: Path) -> None:
    tokenizer = small.tokenizers.Tokenizer.from_str(small.mistral().to_str())
    tokenizer.add_tokens([small.AddedToken("<|im_start|>", rstrip=True, normalized=False, special=True)])
    small.save(tokenizer, tmp_path)
    if beside == "tekken.json":
        save_tekken(tmp_path, small.mistral)
    else:
        small.save_rank_file([bytes([value]) for value in range(256)], tmp_path)
    loaded = load_tokenizer(tmp_path, 1000)
    for text in [*small.TEXTS, "<|im_start|>  user Hello"]:
        assert loaded.encode(text) == tokenizer.encode(text).ids
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text).ids)


def test_what_is_declared_counts_for_tekken(tmp_path: Path) -> None:
    size = small.mistral().get_vocab_size(with_added_tokens=False) + 20
    declared = {str(size): {"content": "<new>", **PLAIN, "special": False}}
    config = {"added_tokens_decoder": declared, "eos_token": "<|im_end|>", "bos_token": "<s>"}
    (save_tekken(tmp_path, small.mistral) / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path, 1000)
    assert tokenizer.encode("<new>[INST]<|im_end|>") == [1, size, 3, size + 1]
    assert tokenizer.decode([1, size, 3, size + 1]) == "<new>"
    config["added_tokens_decoder"] = {"3": {"content": "<x>", **PLAIN}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"id 3.*of '\[INST\]'"):
        load_tokenizer(tmp_path, 1000)


def test_flags_that_tekken_and_rank_files_cannot_have_are_refused(tmp_path: Path) -> None:
    token = {"256": {"content": "<x>", **PLAIN, "rstrip": True}}
    small.save_rank_file([bytes([value]) for value in range(256)], tmp_path, added_tokens_decoder=token)
    with pytest.raises(ConfigError, match=r"'<x>' \(id 256, flags \['rstrip'\]\) is supported in tokenizer.json only"):
        load_tokenizer(tmp_path, 1000)
