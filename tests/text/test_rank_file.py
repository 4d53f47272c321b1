import random
from pathlib import Path

import pytest
from text import small_tokenizers as small

from pipeline.errors import CheckpointError
from pipeline.text.tokenizer import load_tokenizer

SINGLE_BYTES = [bytes([value]) for value in range(256)]


def added(*contents: str, start: int, special: bool = True) -> dict[str, dict[str, object]]:
    return {str(start + index): {"content": content, "special": special} for index, content in enumerate(contents)}


def test_ids_equal_those_of_the_same_vocabulary_in_tokenizer_json(tmp_path: Path) -> None:
    reference = small.llama3()
    ranked = small.ranked_words(reference)
    small.save_rank_file(
        ranked,
        tmp_path,
        added_tokens_decoder=added(*small.NAMED_TOKENS, start=len(ranked)),
        bos_token="<|begin|>",
        add_bos_token=True,
    )
    tokenizer = load_tokenizer(tmp_path, 1000)
    assert tokenizer.bos_id == len(ranked)
    assert tokenizer.special_ids == set(range(len(ranked), len(ranked) + len(small.NAMED_TOKENS)))
    for text in [*small.TEXTS, "", "a<|end|>s<|begin|><|end|>b"]:
        assert tokenizer.encode(text) == reference.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(reference.encode(text).ids)


def test_no_bos_unless_the_configuration_adds_it(tmp_path: Path) -> None:
    tokens = added("<s>", "<tool>", start=256, special=False)
    small.save_rank_file(SINGLE_BYTES, tmp_path, added_tokens_decoder=tokens, bos_token={"content": "<s>"})
    tokenizer = load_tokenizer(tmp_path, 300)
    assert tokenizer.encode("a<tool>") == [97, 257]
    assert (tokenizer.bos_id, tokenizer.special_ids) == (256, {256})  # what is named as BOS is special
    assert tokenizer.decode([256, 97, 257, 299]) == "a<tool>"


def test_a_bare_file_has_no_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.save_rank_file(SINGLE_BYTES, tmp_path), 256)
    assert tokenizer.encode("<|begin_of_text|>") == list(b"<|begin_of_text|>")
    assert tokenizer.bos_id is None


def test_a_named_token_without_an_id_gets_the_next_one(tmp_path: Path) -> None:
    small.save_rank_file(SINGLE_BYTES, tmp_path, bos_token="<s>", pad_token="<pad>", add_bos_token=True)
    assert load_tokenizer(tmp_path, 300).encode("a<pad>") == [256, 97, 257]
    with pytest.raises(CheckpointError, match=r"id 256 around every text"):
        load_tokenizer(tmp_path, 256)


def ranks_like_metas() -> list[bytes]:
    letters = random.Random(0)
    ranked = dict.fromkeys(SINGLE_BYTES)
    while len(ranked) < 128_000:
        ranked[letters.randbytes(3)] = None
    return list(ranked)


def test_metas_own_file_gets_metas_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.save_rank_file(ranks_like_metas(), tmp_path), 128_256)
    assert tokenizer.bos_id == 128_000
    assert tokenizer.special_ids == set(range(128_000, 128_256))
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|reserved_special_token_245|>"
    ids = tokenizer.encode(text)
    assert [token_id for token_id in ids if token_id >= 128_000] == [128_000, 128_006, 128_007, 128_009, 128_255]
    assert tokenizer.decode(ids) == "user\n\nHi"


def test_what_is_declared_beside_metas_own_file_changes_its_tokens_and_keeps_the_rest(tmp_path: Path) -> None:
    declared = added("<|im_start|>", start=128_002) | added("<|eot_id|>", start=128_300)
    small.save_rank_file(ranks_like_metas(), tmp_path, added_tokens_decoder=declared, bos_token="<|begin_of_text|>")
    ids = load_tokenizer(tmp_path, 128_301).encode("<|begin_of_text|><|im_start|>a<|eot_id|><|eom_id|>")
    assert ids == [128_000, 128_002, 97, 128_300, 128_008]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"YQ== x", "line 3: need base64 bytes and a rank"),
        (b"YQ==", "line 3: need base64 bytes and a rank"),
        (b"Y! 2", "line 3: need base64 bytes and a rank"),
        (b"YQ== 256", "need 257 words with ranks 0 to 256, each once"),
        (b"YWI= 300", "need 257 words with ranks 0 to 256, each once"),
    ],
)
def test_a_broken_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    small.save_rank_file(SINGLE_BYTES, tmp_path)
    lines = (tmp_path / "tokenizer.model").read_bytes().splitlines()
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path, 1000)


def test_many_more_lines_than_the_model_has_ids_are_not_taken_apart(tmp_path: Path) -> None:
    path = small.save_rank_file(SINGLE_BYTES, tmp_path) / "tokenizer.model"
    path.write_bytes(path.read_bytes() + b"\n" * 1000)
    with pytest.raises(CheckpointError, match="has 1256 ends of lines, the model only 300 ids"):
        load_tokenizer(tmp_path, 300)


def test_a_missing_byte_is_refused(tmp_path: Path) -> None:
    small.save_rank_file([word for word in SINGLE_BYTES if word != b"\x80"], tmp_path)
    with pytest.raises(CheckpointError, match=r"no token for byte 0x80 \(1 missing\)"):
        load_tokenizer(tmp_path, 1000)


def test_configurations_that_contradict_the_file(tmp_path: Path) -> None:
    small.save_rank_file(SINGLE_BYTES, tmp_path, added_tokens_decoder=added("<s>", start=255))
    with pytest.raises(
        CheckpointError, match=r"'<s>' is declared with id 255, .* is that of 'a token of the vocabulary'"
    ):
        load_tokenizer(tmp_path, 1000)
    small.save_rank_file(SINGLE_BYTES, tmp_path, add_bos_token=True)
    with pytest.raises(CheckpointError, match="bos_token None has no id"):
        load_tokenizer(tmp_path, 1000)
