"""NFC equals that of the `tokenizers` package, whatever Unicode this Python knows, and holds nobody up."""

import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from text import small_tokenizers as small
from tokenizers import normalizers

from pipeline.errors import ConfigError, RequestError
from pipeline.text import normalization
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.normalization import LONGEST_RUN, PIECE_CHARACTERS, PLAIN, nfc
from pipeline.text.tokenizer import load_tokenizer

PACKAGE = normalizers.NFC().normalize_str
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
MARKS = [character for character in CHARACTERS if unicodedata.combining(character)]


def test_every_character_is_normalized_as_the_package_does_it() -> None:
    text = "".join(f"e{character}" for character in CHARACTERS)
    assert nfc(text) == PACKAGE(text)


def test_every_pair_of_marks_is_ordered_as_the_package_does_it() -> None:
    rng = random.Random(0)
    new = [mark for mark in MARKS if unicodedata.ucd_3_2_0.category(mark) == "Cn"]
    pairs = [(first, second) for first in MARKS for second in rng.sample(MARKS, 60) + rng.sample(new, 60)]
    text = "".join(f"e{first}{second}" for first, second in pairs)
    assert nfc(text) == PACKAGE(text)


def test_plain_characters_neither_change_nor_join_what_is_before_them() -> None:
    plain = re.findall(f"[{PLAIN}]", "".join(CHARACTERS))
    parts = [parts.split() for character in CHARACTERS[:0x20000] if (parts := unicodedata.decomposition(character))]
    seconds = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and not part[0].startswith("<")}
    vowels_and_finals = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # of Hangul, by rule
    assert not {*plain} & (seconds | vowels_and_finals | {*MARKS})
    assert all(unicodedata.category(character) != "Cn" for character in plain), "one day it may be a mark"
    for text in ("".join(plain), "".join(reversed(plain))):
        assert PACKAGE(text) == text == nfc(text)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_are_cut_where_nothing_joins(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "PIECE_CHARACTERS", 3)
    rng = random.Random(seed)
    some = [*rng.sample(MARKS, 20), *"ae\u0301\u0323\u1100\u1161\u11a8\uac00\u0915\u093c\u212b\u03b9\u0345한世 "]
    for _ in range(500):
        text = "".join(rng.choices(some, k=rng.randint(0, 30)))
        assert nfc(text) == PACKAGE(text)


def test_a_tokenizer_that_normalizes_has_the_ids_of_the_package(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.save(small.qwen2(), tmp_path), 1000)
    assert isinstance(tokenizer._engine, BytePairEngine)
    assigned = [character for character in CHARACTERS[:0x3400] if unicodedata.category(character) != "Cn"]
    new = [one for one in CHARACTERS[0x10000:0x20000] if unicodedata.category(one) not in ("Cn", "Lo", "Co")]
    text = "".join(f"x{one} 1{one}\u0301{one}\n" for one in (*assigned, *new))
    assert tokenizer.encode(text) == small.qwen2().encode_batch_fast([text])[0].ids


def test_marks_in_a_row_up_to_the_limit_are_normalized_and_more_refused() -> None:
    half = (LONGEST_RUN + PIECE_CHARACTERS) // 2 - 10
    run = "a" + "\u0301" * half + "\u0323" * half  # Python's own normalization needs a minute for it
    assert nfc(run + "a") == PACKAGE(run) + "a"
    with pytest.raises(RequestError, match=rf"more than {LONGEST_RUN} characters in a row from character 10000"):
        nfc("\u0301" * (LONGEST_RUN + PIECE_CHARACTERS + 1))


def test_no_call_of_the_package_holds_the_interpreter_for_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def counted(text: str) -> str:
        lengths.append(len(text))
        return PACKAGE(text)

    monkeypatch.setattr(normalization, "_package", lambda: counted)
    text = "漢字かな交じり文、e\u0301 한국어 " * 10_000
    assert nfc(text) == PACKAGE(text)
    assert max(lengths) < PIECE_CHARACTERS + 20


def test_plain_text_needs_no_package_and_other_text_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = json.loads(small.qwen2().to_str())
    document["added_tokens"] = []
    folder = small.save_document(document, tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    normalization._package.cache_clear()
    tokenizer = load_tokenizer(folder, 1000)
    assert tokenizer.decode(tokenizer.encode("naïve 世界 мир 😀")) == "naïve 世界 мир 😀"
    with pytest.raises(ConfigError, match=r"combining marks.*pip install tokenizers"):
        tokenizer.encode("e\u0301")
