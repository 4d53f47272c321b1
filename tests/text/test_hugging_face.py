import json
import sys
from pathlib import Path

import pytest
from text import small_tokenizers as small

from pipeline.errors import CheckpointError, ConfigError
from pipeline.text.hugging_face import HuggingFaceEngine
from pipeline.text.tokenizer import load_tokenizer


def test_what_tiktoken_cannot_express_is_read_by_the_package(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.save(small.phi3(), tmp_path), 1000)
    assert isinstance(tokenizer._engine, HuggingFaceEngine)
    assert tokenizer.decode(tokenizer.encode("Hello 世界 😀")) == "Hello 世界 😀"


def test_without_the_package_the_error_names_the_reason_and_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    folder = small.save(small.phi3(), tmp_path)
    with pytest.raises(ConfigError, match=r"tiktoken can express exactly.*flags .'rstrip'.*pip install tokenizers"):
        load_tokenizer(folder, 1000)


def test_byte_level_files_do_not_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = small.save(small.llama3(), tmp_path), small.llama3().encode("Hello").ids
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert load_tokenizer(folder, 1000).encode("Hello") == expected


def test_a_decoder_without_an_incremental_form_is_refused_by_name(tmp_path: Path) -> None:
    document = json.loads(small.phi3().to_str())
    document["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    with pytest.raises(ConfigError, match=r"decoder \['BPEDecoder'\] cannot be followed token by token"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


def test_a_decoder_that_keeps_the_first_space(tmp_path: Path) -> None:
    document = json.loads(small.phi3().to_str())
    document["decoder"]["decoders"].pop()
    tokenizer = load_tokenizer(small.save_document(document, tmp_path), 1000)
    assert tokenizer.decode(tokenizer.encode("Hello")) == " Hello"


def test_a_file_that_the_package_refuses(tmp_path: Path) -> None:
    document = json.loads(small.phi3().to_str())
    document["model"]["merges"] = [["no", "such token"]]
    with pytest.raises(CheckpointError, match=r"tokenizer.json: .*fetch the file again"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


def test_padding_and_truncation_of_the_file_do_not_apply(tmp_path: Path) -> None:
    reference = small.tokenizers.Tokenizer.from_str(small.phi3().to_str())
    reference.enable_truncation(3)
    reference.enable_padding(length=50)
    tokenizer = load_tokenizer(small.save(reference, tmp_path), 1000)
    text = "Hello world, this is long"
    assert tokenizer.encode(text) == small.phi3().encode(text).ids


@pytest.mark.parametrize("build", [small.phi3, small.gpt2])
def test_a_text_has_the_same_ids_each_time_whatever_dropout_the_file_says(build: small.Build, tmp_path: Path) -> None:
    document = json.loads(build().to_str())
    document["model"]["dropout"] = 0.9
    tokenizer = load_tokenizer(small.save_document(document, tmp_path), 1000)
    assert all(
        tokenizer.encode(text) == build().encode(text).ids for text in ["Hello world", " the then", "in on an"] * 3
    )


def test_a_merge_that_would_end_the_process_is_refused_before_the_package_sees_it(tmp_path: Path) -> None:
    document = json.loads(small.gpt2().to_str())
    document["model"]["continuing_subword_prefix"] = "##"
    with pytest.raises(CheckpointError, match=r"tokenizer.json: a merge ends in .*continuing_subword_prefix '##'"):
        load_tokenizer(small.save_document(document, tmp_path), 1000)


def test_a_panic_while_a_file_is_read_is_an_error_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panics(*_: object) -> None:
        raise PanicException("range end index out of range")

    monkeypatch.setattr("pipeline.text.tokenizer.read_tokenizer_json", panics)
    with pytest.raises(CheckpointError, match=r"the tokenizer files are malformed .*range end index"):
        load_tokenizer(small.save(small.gpt2(), tmp_path), 1000)
