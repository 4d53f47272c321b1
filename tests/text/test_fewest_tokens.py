"""A text is refused by its bytes only where it can never fit."""

import functools
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text import small_tokenizers as small

from pipeline.text.byte_pair import COMPOSED_BYTES, BytePairEngine
from pipeline.text.detokenizer import ByteLevelDetokenizer
from pipeline.text.normalization import nfc
from pipeline.text.split_patterns import QWEN2
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

STYLES = [small.gpt2, small.llama3, small.qwen2, small.smollm, small.mistral, small.llama2]


@functools.cache
def loaded(build: small.Build) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(small.save(build(), Path(folder)), 1000)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text()
    | st.text(" a=\n\u0301\u0308\u0345\u1fbe\u1161\u11a8\u1100", max_size=60)
    | st.sampled_from(small.TEXTS)
)
@pytest.mark.parametrize("build", STYLES, ids=lambda build: build.__name__)
def test_no_text_has_fewer_tokens(build: small.Build, text: str) -> None:
    tokenizer = loaded(build)
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))


@pytest.mark.parametrize("build", STYLES, ids=lambda build: build.__name__)
def test_a_megabyte_of_any_text_has_thousands(build: small.Build) -> None:
    assert loaded(build).fewest_tokens("x" * 1_000_000) > 1_000


def test_normalization_makes_no_text_shorter_than_it_is_said_to() -> None:
    longest: dict[str, str] = {}  # what is longest of all that normalizes to a character, one level deep
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for character in characters:
        if len(canonical := unicodedata.normalize("NFD", character)) == 1 and canonical != character:
            longest[canonical] = max(longest.get(canonical, ""), character, key=lambda one: len(one.encode()))
    most = 0.0
    for character in characters:
        source = "".join(longest.get(part, part) for part in unicodedata.normalize("NFD", character))
        if unicodedata.normalize("NFC", source) == character:
            most = max(most, len(source.encode()) / len(character.encode()))
    assert most == 3.5 < COMPOSED_BYTES


def test_a_text_that_normalization_shortens_is_not_refused_for_it() -> None:
    engine = BytePairEngine(
        ranks={bytes([value]): value for value in range(256)},
        token_ids=range(256),
        pattern=QWEN2,
        detokenizer=functools.partial(ByteLevelDetokenizer, {}),
        added_tokens=[],
        prefix=[],
        bos_id=None,
        normalize=nfc,
    )
    tokenizer, text = Tokenizer(engine, 256), "\u1fbe\u0308\u0301" * 10
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text)) == 20
