import functools
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.cases import EVERYTHING
from text import small_tokenizers as small
from tokenizers.decoders import DecodeStream

from pipeline.errors import CheckpointError, ConfigError, RequestError
from pipeline.text import byte_pair
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.detokenizer import Detokenizer
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

TIMES = 8 if EVERYTHING else 1
LONG_RUN = 200_000 if EVERYTHING else 120_000
BYTE_LEVEL = [small.gpt2, small.llama3, small.qwen2, small.qwen3_5, small.smollm, small.mistral]
SENTENCE_PIECES = [small.llama2, small.mistral7, small.gemma]
BY_TIKTOKEN = [*BYTE_LEVEL, *SENTENCE_PIECES]
EVERY_STYLE = [*BY_TIKTOKEN, small.phi3]
FRAGMENTS = st.sampled_from(
    [
        *small.NAMED_TOKENS,
        *("<tool_call>", "e\u0301q", "naïve", "nai\u0308ve", "<tool> x", "<tool▁call>", "~", "<|", "s"),
        *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "'s", "'LL", "'\u017f", "7", "123456"),
        *(" x", "<|user|>", "世", "é", "e\u0301", "😀", "-", "▁"),
    ]
)
TEXT = st.lists(FRAGMENTS | st.text(max_size=8), max_size=20).map("".join)


@functools.cache
def loaded(build: small.Build) -> Tokenizer:
    """The tokenizer under test, through the files; its model has 50 ids more than there are tokens."""
    with tempfile.TemporaryDirectory() as folder:
        size = build().get_vocab_size() + 50
        return load_tokenizer(small.save(build(), Path(folder)), size)


@pytest.fixture(params=EVERY_STYLE, ids=lambda build: build.__name__)
def style(request: pytest.FixtureRequest) -> small.Build:
    build: small.Build = request.param
    return build


@pytest.mark.parametrize("build", BY_TIKTOKEN, ids=lambda build: build.__name__)
def test_known_styles_are_read_by_tiktoken(build: small.Build) -> None:
    assert isinstance(loaded(build)._engine, BytePairEngine)


def test_encode_equals_the_reference_on_varied_texts(style: small.Build) -> None:
    for text in [*small.TEXTS, "".join(small.TEXTS), "", " ", "\n", *(text[::-1] for text in small.TEXTS)]:
        assert loaded(style).encode(text) == style().encode(text).ids


@settings(deadline=None, max_examples=40 * TIMES)
@given(text=TEXT)
@pytest.mark.parametrize("build", EVERY_STYLE, ids=lambda build: build.__name__)
def test_ids_equal_the_reference_on_any_text(build: small.Build, text: str) -> None:
    assert loaded(build).checkpoint_ids(text).tolist() == build().encode(text).ids


def joined(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@settings(deadline=None, max_examples=50 * TIMES)
@given(data=st.data())
@pytest.mark.parametrize("build", EVERY_STYLE, ids=lambda build: build.__name__)
def test_decode_and_pushes_equal_the_reference_on_any_ids(build: small.Build, data: st.DataObject) -> None:
    tokenizer, reference = loaded(build), build()
    # Mostly single bytes and special tokens, which is where decoding can go wrong.
    low, anywhere = st.integers(0, 300), st.integers(0, tokenizer.vocabulary_size - 1)
    ids = data.draw(st.lists(low | anywhere | st.sampled_from(sorted(tokenizer.special_ids)), max_size=30))
    expected = reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == expected
    assert joined(tokenizer.detokenizer(), ids) == expected


@settings(deadline=None, max_examples=50 * TIMES)
@given(data=st.data())
@pytest.mark.parametrize("build", EVERY_STYLE, ids=lambda build: build.__name__)
def test_an_answer_goes_on_where_the_text_of_its_prompt_ends(build: small.Build, data: st.DataObject) -> None:
    tokenizer, reference = loaded(build), build()
    low, anywhere = st.integers(0, 300), st.integers(0, tokenizer.vocabulary_size - 1)
    ids = st.lists(low | anywhere | st.sampled_from(sorted(tokenizer.special_ids)), max_size=8)
    prompt, answer = data.draw(ids), data.draw(ids)
    before, both = reference.decode(prompt), reference.decode(prompt + answer)
    assume(not before.endswith("\ufffd") and both.startswith(before))  # else the prompt has no text of its own
    assert before + joined(tokenizer.detokenizer(prompt), answer) == both


@pytest.mark.parametrize("end", ["", "<|end|>", "<|begin|><|end|>"])
def test_an_answer_equals_the_stream_of_the_package_begun_with_the_prompt(style: small.Build, end: str) -> None:
    tokenizer, reference = loaded(style), style()
    for prompt, answer in pairwise(["", *small.TEXTS, "Hello", " you", "you", "世", "😀"]):
        prompt_ids = reference.encode(prompt + end).ids
        ids = reference.encode(answer, add_special_tokens=False).ids
        stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        expected = "".join(stream.step(reference, token_id) or "" for token_id in ids)
        assert joined(tokenizer.detokenizer(prompt_ids), ids) == expected


@settings(deadline=None, max_examples=25 * TIMES)
@given(text=st.text())
@pytest.mark.parametrize("build", EVERY_STYLE, ids=lambda build: build.__name__)
def test_pushes_of_encoded_text_never_hold_a_replacement_character(build: small.Build, text: str) -> None:
    detokenizer = loaded(build).detokenizer()
    pushed = [detokenizer.push(token_id) for token_id in loaded(build).encode(text.replace("\ufffd", ""))]
    assert "\ufffd" not in "".join([*pushed, detokenizer.flush()])


def test_ids_without_a_token_decode_to_nothing(style: small.Build) -> None:
    tokenizer = loaded(style)
    word = style().encode("word", add_special_tokens=False).ids
    assert tokenizer.decode([tokenizer.vocabulary_size - 1, *word, tokenizer.vocabulary_size - 2]) == tokenizer.decode(
        word
    )


def test_the_bytes_of_tokens_are_together_those_of_their_text(style: small.Build) -> None:
    tokenizer, reference = loaded(style), style()
    before, *ids = reference.encode("a word, 世界 and 😀 é\n", add_special_tokens=False).ids
    decoded = tokenizer.decode([before, *ids]).removeprefix(tokenizer.decode([before]))
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == decoded
    for token_id, token in reference.get_added_tokens_decoder().items():
        assert not token.special or tokenizer.token_bytes(token_id) == token.content.encode()
    assert tokenizer.token_bytes(tokenizer.vocabulary_size - 1) == b""


def test_special_tokens_have_a_text_where_they_are_to_be_shown(style: small.Build) -> None:
    """They end a character that is not whole, and the others have none, as ever."""
    tokenizer = loaded(style)
    shown, *_ = sorted(tokenizer.special_ids)
    other = max(tokenizer.special_ids - {shown}, default=tokenizer.vocabulary_size - 1)
    name = tokenizer.token_bytes(shown).decode()
    half, word = (tokenizer.chat_ids(text).tolist()[-1:] for text in ("é", "word"))
    detokenizer = tokenizer.detokenizer(word, [name, "[NONE]"])
    have = joined(detokenizer, [*word, shown, other, *half, shown])
    plain = tokenizer.detokenizer(word)
    assert have == joined(plain, word) + name + joined(tokenizer.detokenizer(word), half) + name


def test_special_ids_and_bos(style: small.Build) -> None:
    tokenizer, reference = loaded(style), style()
    added = reference.get_added_tokens_decoder()
    assert tokenizer.special_ids == {token_id for token_id, token in added.items() if token.special}
    begins = reference.encode("a").tokens[0] == "<|begin|>"
    assert tokenizer.bos_id == (reference.token_to_id("<|begin|>") if begins else None)


def test_bos_token_of_the_configuration_is_known_even_if_no_template_adds_it(tmp_path: Path) -> None:
    folder = small.save(small.qwen2(), tmp_path, bos_token={"content": "<|end|>"}, add_bos_token=True)
    tokenizer = load_tokenizer(folder, 1000)
    assert tokenizer.bos_id == small.qwen2().token_to_id("<|end|>")
    assert tokenizer.encode("a") == small.qwen2().encode("a").ids  # the template of tokenizer.json decides


@pytest.mark.parametrize("ids", [[0, -1], [0, 10_000]])
def test_decode_refuses_ids_outside_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises(RequestError, match=rf"ids: need token ids from 0 to \d+, have {ids[1]} at 1$"):
        loaded(small.gpt2).decode(ids)


def test_encode_refuses_a_token_that_the_model_lacks(tmp_path: Path) -> None:
    size = small.qwen2().get_vocab_size(with_added_tokens=False)
    tokenizer = load_tokenizer(small.save(small.qwen2(), tmp_path), size)
    assert tokenizer.encode("plain") == small.qwen2().encode("plain").ids
    with pytest.raises(RequestError, match=f"outside the vocabulary of {size}"):
        tokenizer.encode("plain<|end|>")


def test_lone_surrogates_are_refused_with_their_place(style: small.Build) -> None:
    with pytest.raises(RequestError, match=r"U\+D83D at character 3"):
        loaded(style).encode("abc\ud83d")


@pytest.mark.parametrize("letter", ["a", "é"])
@pytest.mark.parametrize(("style", "most"), [(small.gpt2, 1 << 24), (small.phi3, 1 << 20)], ids=["gpt2", "phi3"])
def test_too_long_a_text_is_refused_by_its_bytes(style: small.Build, most: int, letter: str) -> None:
    with pytest.raises(RequestError, match=rf"at most {most} can be tokenized; give token ids instead"):
        loaded(style).fewest_tokens(letter * (most // len(letter.encode()) + 1))


@pytest.mark.parametrize("build", BYTE_LEVEL, ids=lambda build: build.__name__)
def test_whitespace_runs_up_to_the_limit_are_encoded_and_longer_ones_refused(build: small.Build) -> None:
    limit = byte_pair.LONGEST_WHITESPACE_RUN
    text = "x" + " " * limit + "x" + "\n" * (limit // 2) + "y"
    assert loaded(build).decode(loaded(build).encode(text)) == text
    with pytest.raises(RequestError, match=rf"{limit + 1} whitespace characters in a row from character 2"):
        loaded(build).encode("xy" + " " * (limit + 1) + "x")


@pytest.mark.parametrize("unit", ["^", "a", "<", "<|begin|", "😀", "a^", "\n ", "1"])
def test_long_runs_without_a_border_are_encoded(style: small.Build, unit: str) -> None:
    text = unit * (LONG_RUN // len(unit))
    assert loaded(style).decode(loaded(style).encode(text)) == text


def test_what_the_engine_gives_up_on_is_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_pair, "LONGEST_WHITESPACE_RUN", 10**9)
    with pytest.raises(RequestError, match="cannot take this text of 1000001 characters"):
        loaded(small.gpt2).encode(" " * 1_000_000 + "x")
    assert loaded(small.gpt2).encode("still works") == small.gpt2().encode("still works").ids


def test_a_panic_in_the_engine_becomes_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """What bindings to Rust raise."""

    def panic(self: object, text: str, **options: bool) -> list[int]:
        raise PanicException("no way")

    tokenizer = loaded(small.gpt2)
    monkeypatch.setattr(byte_pair.BytePairEngine, "encode", panic)
    with pytest.raises(RequestError, match="cannot take this text of 5 characters: no way"):
        tokenizer.encode("hello")


def test_interrupts_pass_through() -> None:
    class Interrupted:
        bos_id, special_tokens, ordinary_size = None, dict[int, str](), 1

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            raise KeyboardInterrupt

        def detokenizer(self, prompt_ids: Sequence[int] = ()) -> None:
            raise NotImplementedError

    with pytest.raises(KeyboardInterrupt):
        Tokenizer(Interrupted(), 1).encode("a")  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer: need tokenizer.json, tokenizer.model or tekken.json"):
        load_tokenizer(tmp_path, 100)


def test_a_tokenizer_bigger_than_the_model(style: small.Build, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ids up to \d+, the model only 300"):
        load_tokenizer(small.save(style(), tmp_path), 300)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"model": 1}', "{}", '{"model": {}}', '{"model": {"type": "BPE"}, "decoder": []}', "[" * 100_000],
)
def test_broken_tokenizer_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tokenizer(tmp_path, 100)


def test_broken_tokenizer_config(tmp_path: Path) -> None:
    small.save(small.gpt2(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: broken JSON"):
        load_tokenizer(tmp_path, 1000)


def test_a_sentence_piece_model_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>")
    with pytest.raises(ConfigError, match=r"SentencePiece model.*pip install tokenizers"):
        load_tokenizer(tmp_path, 100)
    small.save(small.llama2(), tmp_path)
    assert load_tokenizer(tmp_path, 1000).encode("Hello") == small.llama2().encode("Hello").ids


def test_a_byte_level_tokenizer_json_comes_before_the_other_files(tmp_path: Path) -> None:
    small.save(small.qwen2(), tmp_path)
    small.save_rank_file([bytes([value]) for value in range(256)], tmp_path)
    assert load_tokenizer(tmp_path, 1000).encode("Hello") == small.qwen2().encode("Hello").ids


def test_loading_a_real_sized_vocabulary_is_quick(tmp_path: Path) -> None:
    letters = small.ALPHABET
    pairs = [left + right for left in letters for right in letters]
    triples = [pair + letters[0] for pair in pairs[: 128_000 - 256 - len(pairs)]]
    document = json.loads(small.gpt2().to_str())
    document["added_tokens"] = []
    document["model"]["vocab"] = {token: token_id for token_id, token in enumerate([*letters, *pairs, *triples])}
    document["model"]["merges"] = [[token[:-1], token[-1]] for token in [*pairs, *triples]]
    small.save_document(document, tmp_path)
    started = time.process_time()
    tokenizer = load_tokenizer(tmp_path, 128_000)
    assert time.process_time() - started < 4  # 0.6 seconds where it was written
    assert isinstance(tokenizer._engine, BytePairEngine)
    text = "Where does it all come from?"
    assert tokenizer.encode(text) == tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
