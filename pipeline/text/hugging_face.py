"""Every other `tokenizer.json` (SentencePiece style above all), through the `tokenizers` package of the extra `hf`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipeline.errors import CheckpointError, ConfigError
from pipeline.text.added_tokens import AddedToken
from pipeline.text.byte_level import ALPHABET, added_pieces, template, vocabulary_pieces
from pipeline.text.byte_pair import COMPOSED_BYTES
from pipeline.text.detokenizer import ByteFallbackDetokenizer, ByteLevelDetokenizer, Detokenizer
from pipeline.text.merges import Inexact
from pipeline.text.tokenizer_json import TokenizerJson

_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_SENTENCE_PIECE = [
    {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_MARK_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
_KEEP_TEXT = {"ByteLevel", "Digits", "Metaspace", "NFC", "Prepend", "Split"}
_BYTE_TOKENS = {f"<0x{value:02X}>" for value in range(256)}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HuggingFaceEngine:
    """Encodes with the `tokenizers` package; decodes with our own detokenizers, which never emit half a character.

    Raises ConfigError without the package, or for a decoder that we have no exact incremental form of; CheckpointError
    if the package refuses the file, or gives an added token another id than the files say.
    """

    def __init__(self, source: TokenizerJson, bos_token: str | None, why: str) -> None:
        path = source.path
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                f"{path} is not byte-level BPE that tiktoken can express exactly ({why}); reading it needs the "
                "`tokenizers` package: pip install 'penstock[hf]'"
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source.raw.decode())
        except Exception as error:  # the package raises nothing narrower
            raise CheckpointError(f"{path}: {error}; fetch the file again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add(source)
        added_tokens = [self._as_decoded(token) for token in source.added_tokens.tokens]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        self._new_detokenizer = _detokenizers(source.document["decoder"], vocabulary, added_tokens)
        self.special_ids = frozenset(token.token_id for token in added_tokens if token.special)
        self.ordinary_size = max(vocabulary.values()) + 1
        self.token_bytes = _token_bytes(source, vocabulary)
        self.bos_id = self._tokenizer.token_to_id(bos_token) if bos_token else _first_of_template(source.document)

    def _add(self, source: TokenizerJson) -> None:
        self._tokenizer.add_tokens([_in_the_package(token) for token in source.added_tokens.additions])
        for token in source.added_tokens.tokens:
            if (given := self._tokenizer.token_to_id(token.content)) != token.token_id:
                raise CheckpointError(
                    f"{source.path}: added token {token.content[:80]!r} has id {token.token_id} in the files, but would"
                    f" get {given}, since ids before it are missing; correct the file"
                )

    def _as_decoded(self, token: AddedToken) -> AddedToken:
        """The token as the package decodes it: normalized, and special if it ever was declared so."""
        one = [token.token_id]
        special = self._tokenizer.decode(one) != self._tokenizer.decode(one, skip_special_tokens=False)
        return replace(token, content=str(self._tokenizer.id_to_token(token.token_id)), special=special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with what the checkpoint's template puts around it."""
        # `encode` holds the interpreter lock all the while, and takes notes of places that nobody asks for.
        [encoding] = self._tokenizer.encode_batch_fast([text])
        ids: list[int] = encoding.ids
        return ids

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """Return a detokenizer for what follows `prompt_ids`."""
        return self._new_detokenizer(prompt_ids)


def _token_bytes(source: TokenizerJson, vocabulary: Mapping[str, int]) -> int | None:
    """The most bytes of text that one token can stand for; None where a step may drop text, or is not known here.

    Every byte must have a token of its own, else a token for what is unknown stands for text of any length.
    """
    document, added_tokens = source.document, source.added_tokens.tokens
    pre_tokenizer, normalizer = document["pre_tokenizer"] or {}, document["normalizer"] or {}
    steps = [*pre_tokenizer.get("pretokenizers", [pre_tokenizer]), *normalizer.get("normalizers", [normalizer])]
    kinds = {step["type"] for step in steps if step and step != _MARK_SPACES}
    drops_text = any(step.get("behavior") == "Removed" for step in steps) or not kinds <= _KEEP_TEXT
    if "ByteLevel" in kinds:
        covers_bytes = vocabulary.keys() >= set(ALPHABET)
    else:
        covers_bytes = bool(document["model"].get("byte_fallback")) and vocabulary.keys() >= _BYTE_TOKENS
    if drops_text or not covers_bytes or any(one.lstrip or one.rstrip for one in added_tokens):
        return None
    longest = max(len(token.encode()) for token in [*vocabulary, *(one.content for one in added_tokens)])
    return longest * (COMPOSED_BYTES if "NFC" in kinds else 1)


def _in_the_package(token: AddedToken) -> Any:
    import tokenizers

    flags = {name: value for name, value in asdict(token).items() if name not in ("content", "token_id")}
    return tokenizers.AddedToken(token.content, **flags)


def _first_of_template(document: dict[str, Any]) -> int | None:
    try:
        prefix, _ = template(document["post_processor"])
    except Inexact:
        return None
    return next(iter(prefix), None)


def _detokenizers(
    decoder: dict[str, Any] | None, vocabulary: Mapping[str, int], added_tokens: Sequence[AddedToken]
) -> Callable[[Sequence[int]], Detokenizer]:
    if decoder and decoder["type"] == "ByteLevel":
        return partial(ByteLevelDetokenizer, vocabulary_pieces(vocabulary) | added_pieces(added_tokens))
    steps = (decoder or {}).get("decoders", [decoder])
    if steps[: len(_SENTENCE_PIECE)] == _SENTENCE_PIECE and steps[len(_SENTENCE_PIECE) :] in ([], [_STRIP_FIRST_SPACE]):
        text_pieces = {token_id: _text_piece(token) for token, token_id in vocabulary.items()}
        for token in added_tokens:
            text_pieces[token.token_id] = "" if token.special else _text_piece(token.content)
        return partial(ByteFallbackDetokenizer, text_pieces, _STRIP_FIRST_SPACE in steps)
    raise ConfigError(
        f"tokenizer.json: decoder {[step and step['type'] for step in steps]} cannot be followed token by token; "
        "supported are ByteLevel and Replace, ByteFallback, Fuse and Strip (SentencePiece)"
    )


def _text_piece(token: str) -> str | bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE_MARK, " ")
