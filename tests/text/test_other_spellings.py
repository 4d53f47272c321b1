"""A `tokenizer.json` may leave parts out, wrap a step in a Sequence, spell merges two ways: as the package has it."""

import json
from pathlib import Path
from typing import Any

import pytest
from text import small_tokenizers as small

from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.tokenizer import load_tokenizer

Document = dict[str, Any]
SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
TEXT = "Hello  world,<|begin|> naïve e\u0301 Å 12 世😀\n\n x"
REPLACE, BYTES, FUSE, STRIP = json.loads(small.llama2().to_str())["decoder"]["decoders"]
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def require_the_same(document: Document, folder: Path) -> BytePairEngine | object:
    """Compare ids, and the text token by token from two places, with those of the package; return the engine."""
    package = small.tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer = load_tokenizer(small.save_document(document, folder), 1000)
    ids = package.encode(TEXT).ids
    assert tokenizer.encode(TEXT) == ids
    assert tokenizer.decode(ids) == package.decode(ids)
    prompt, answer = ids[:7], ids[7:]
    detokenizer = tokenizer.detokenizer(prompt)
    told = "".join(map(detokenizer.push, answer)) + detokenizer.flush()
    assert package.decode(prompt) + told == package.decode(ids)
    return tokenizer._engine


@pytest.mark.parametrize("build", [small.llama3, small.qwen2, small.llama2])
def test_what_the_package_does_without_may_be_left_out_or_null(build: small.Build, tmp_path: Path) -> None:
    whole = json.loads(build().to_str())
    byte_level = isinstance(require_the_same(whole, tmp_path), BytePairEngine)
    gone = ["version", "truncation", "padding", "added_tokens", "normalizer", "post_processor"]
    optional = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges")
    for name in gone:
        without = {key: value for key, value in whole.items() if key != name}
        assert isinstance(require_the_same(without, tmp_path), BytePairEngine) == byte_level, name
        if name not in ("version", "added_tokens"):
            require_the_same(without | {name: None}, tmp_path)
    model = {key: value for key, value in whole["model"].items() if key not in ("type", *optional)}
    least = {"model": model, "pre_tokenizer": whole["pre_tokenizer"], "decoder": whole["decoder"]}
    assert isinstance(require_the_same(least, tmp_path), BytePairEngine) == byte_level
    require_the_same(least | {"model": {**model, **dict.fromkeys(optional)}}, tmp_path)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    require_the_same(least | {"model": {**model, "merges": merges}}, tmp_path)


@pytest.mark.parametrize("build", [small.gpt2, small.llama3, small.qwen2, small.smollm, small.llama2])
def test_a_sequence_is_what_it_holds(build: small.Build, tmp_path: Path) -> None:
    document = json.loads(build().to_str())
    byte_level = isinstance(require_the_same(document, tmp_path), BytePairEngine)
    for part, inside in SEQUENCES.items():
        one = {"type": "Sequence", inside: [document[part]] if document[part] else []}
        document[part] = {"type": "Sequence", inside: [one]}
        assert isinstance(require_the_same(document, tmp_path), BytePairEngine) == byte_level, part


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "Sequence", "decoders": []},
        *({"type": "Sequence", "decoders": one} for one in ([BYTES, FUSE], [REPLACE, BYTES], [REPLACE, FUSE, STRIP])),
        {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [REPLACE, BYTES, FUSE]}, STRIP]},
        FUSE,
        REPLACE,
        {**METASPACE, "prepend_scheme": "always"},
        {**METASPACE, "prepend_scheme": "never"},
        {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        {"type": "Sequence", "decoders": [BYTE_LEVEL, FUSE]},
        {"type": "WordPiece", "prefix": "▁", "cleanup": True},
        *({"type": "Sequence", "decoders": one} for one in ([REPLACE, STRIP], [METASPACE, FUSE], [STRIP, METASPACE])),
        {"type": "Replace", "pattern": {"Regex": "[▁l]"}, "content": "."},
    ],
    ids=json.dumps,
)
def test_a_decoder_is_followed_token_by_token(decoder: Document | None, tmp_path: Path) -> None:
    build = small.llama3 if decoder and BYTE_LEVEL in decoder.get("decoders", []) else small.llama2
    require_the_same(json.loads(build().to_str()) | {"decoder": decoder}, tmp_path)
