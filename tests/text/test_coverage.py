"""No tokenizer drops text in silence: what it cannot cover is refused, at opening or at the request."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from text import small_tokenizers as small
from text.test_tekken import save as save_tekken
from tokenizers import decoders, models, pre_tokenizers

from pipeline.errors import CheckpointError, RequestError
from pipeline.text.split_patterns import COVERING_PATTERNS, MISTRAL
from pipeline.text.tokenizer import load_tokenizer

INCOMPLETE = {
    "letters only": r"\p{L}+",
    "no controls": r"[^\x00-\x08]+|\n+",
    "no single spaces": MISTRAL.removesuffix(r"|\s+"),
    "no numbers": MISTRAL.replace(r"|\p{N}", ""),
    "nothing": "(?!)",
}


@pytest.mark.parametrize("what", INCOMPLETE)
def test_a_tekken_pattern_that_leaves_text_out_is_refused_at_opening(what: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tekken.json: the pattern .* leaves out .*\(U\+.*would be dropped"):
        load_tokenizer(save_tekken(tmp_path, pattern=INCOMPLETE[what]), 1000)


@pytest.mark.parametrize("text", ["zqxyz", "aé zqx", "世界zqx"])
def test_what_only_a_particular_text_shows_is_refused_there(text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tekken(tmp_path, pattern=r"zqx(?=y)|(?!zqx)[\s\S]"), 1000)
    assert tokenizer.decode(tokenizer.encode("zqxy z q x")) == "zqxy z q x"
    if text == "zqxyz":
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    with pytest.raises(RequestError, match=r"leaves out 'z' \(U\+007A\), after '.*'"):
        tokenizer.encode(text)


@pytest.mark.parametrize("pattern", sorted(COVERING_PATTERNS))
def test_the_patterns_that_are_not_watched_leave_nothing_out(pattern: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tekken(tmp_path, pattern=pattern), 1000)
    watched = load_tokenizer(save_tekken(tmp_path, pattern=f"{pattern}|(?!)"), 1000)
    codes = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x12000), *range(0x1D000, 0x1FB00, 3)]
    text = "".join(f"{chr(code)} {chr(code)}a" for code in codes)
    assert tokenizer.encode(text) == watched.encode(text)


def bpe(tokens: list[str], **model: Any) -> tokenizers.Tokenizer:
    """A tokenizer of single letters in the style of SentencePiece."""
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], **model))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


LETTERS = ["<unk>", "▁", "a", "b"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


@pytest.mark.parametrize(
    ("tokens", "model"),
    [
        (LETTERS, {}),
        ([*LETTERS, *BYTES], {}),
        ([*LETTERS, *BYTES[:-20]], {"byte_fallback": True}),
    ],
    ids=["no fallback", "fallback not used", "fallback incomplete"],
)
def test_a_vocabulary_without_bytes_is_refused_where_the_rest_would_be_dropped(
    tokens: list[str], model: dict[str, Any], tmp_path: Path
) -> None:
    made = bpe(tokens, **model)
    with pytest.raises(CheckpointError, match=r"no token for byte 0x.*neither an unk_token nor byte_fallback"):
        load_tokenizer(small.save(made, tmp_path), 1000)


def test_a_byte_level_vocabulary_without_all_letters_is_refused(tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["model"]["vocab"]["?" * 9] = document["model"]["vocab"].pop("!")
    with pytest.raises(CheckpointError, match=r"no token for byte 0x21 \(1 missing\)"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


@pytest.mark.parametrize("fuse_unk", [False, True])
def test_a_character_that_would_become_unknown_is_named(fuse_unk: bool, tmp_path: Path) -> None:
    made = bpe(LETTERS, unk_token="<unk>", fuse_unk=fuse_unk)
    made.add_special_tokens(["<unk>"])
    tokenizer = load_tokenizer(small.save(made, tmp_path), 1000)
    for text in ["ab a", "a<unk>b", "<unk>", ""]:
        assert tokenizer.encode(text) == made.encode(text).ids
    for text, at in [("ab xyz", 3), ("xa", 0), ("<unk>ax", 6), ("a" * 40_000 + "x", 40_000)]:
        with pytest.raises(RequestError, match=rf"character {at} of the text, 'x' \(U\+0078\), has no token"):
            tokenizer.encode(text)


def test_a_unigram_vocabulary_names_what_it_lacks(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -1.0), ("ab", -1.5)]
    for unk_id in (0, None):
        made = bpe(LETTERS)
        made.model = models.Unigram(pieces, unk_id, False)
        folder = small.save(made, tmp_path)
        if unk_id is None:
            with pytest.raises(CheckpointError, match="text would be dropped"):
                load_tokenizer(folder, 1000)
        else:
            assert load_tokenizer(folder, 1000).encode("ab a") == made.encode("ab a").ids
            with pytest.raises(RequestError, match="character 3 of the text, 'é'"):
                load_tokenizer(folder, 1000).encode("ab é")


def test_whole_bytes_are_enough_where_they_are_used(tmp_path: Path) -> None:
    made = bpe([*LETTERS, *BYTES[:0xF5]], byte_fallback=True)
    tokenizer = load_tokenizer(small.save(made, tmp_path), 1000)
    assert tokenizer.decode(tokenizer.encode("ab 世界 😀\x00")) == "ab 世界 😀\x00"


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: dict[str, str], invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": invert}


LEAVING = {
    "digits": split({"Regex": "[0-9]+"}),
    "all but letters": split({"Regex": "[a-z]+"}, invert=True),
    "a letter": split({"String": "e"}),
    "a delimiter": {"type": "CharDelimiterSplit", "delimiter": "e"},
    "punctuation": {"type": "Punctuation", "behavior": "Removed"},
}


@pytest.mark.parametrize("step", LEAVING.values(), ids=LEAVING)
def test_a_step_that_leaves_text_out_is_refused_at_opening(step: dict[str, Any], tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]}
    with pytest.raises(
        CheckpointError, match=f"tokenizer.json: {step['type']} leaves out text, which would be dropped"
    ):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


@pytest.mark.parametrize("step", [split({"Regex": r"\s+"}), split({"String": " "}), split({"Regex": MISTRAL}, True)])
def test_words_without_the_spaces_between_them_are_taken(step: dict[str, Any], tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]}
    expected = tokenizers.Tokenizer.from_str(json.dumps(document)).encode("Hello world 12!").ids
    assert load_tokenizer(small.save_document(document, tmp_path), 1000).encode("Hello world 12!") == expected


@pytest.mark.parametrize("single", [[], [{"Sequence": {"id": "B", "type_id": 0}}]], ids=["no text", "another text"])
def test_a_template_without_a_place_for_the_text_is_refused(single: list[Any], tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    with pytest.raises(CheckpointError, match="TemplateProcessing leaves out text"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_bytes_need_tokens_wherever_in_a_word_they_stand(key: str, tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["model"] |= {key: "##", "merges": []}
    with pytest.raises(CheckpointError, match="neither an unk_token nor byte_fallback: text would be dropped"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)
