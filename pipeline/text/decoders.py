"""From the decoder of a `tokenizer.json` to detokenizers that give the same text, token by token."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.errors import ConfigError
from pipeline.text.added_tokens import AddedToken
from pipeline.text.byte_level import BYTE_LEVEL_DECODERS, added_pieces, vocabulary_pieces
from pipeline.text.detokenizer import (
    ByteFallbackDetokenizer,
    ByteLevelDetokenizer,
    Detokenizer,
    SeparateTokensDetokenizer,
)
from pipeline.text.tokenizer_json import steps

SUPPORTED = (
    "ByteLevel; Replace of a text, ByteFallback, Fuse and Strip of one space (SentencePiece); Metaspace, Replace, "
    "Strip and WordPiece in any order"
)
_TOKEN_BY_TOKEN = {"Metaspace", "Replace", "Strip", "WordPiece"}
"""Each changes tokens without a look at those around them, but that the first of a text may be another case."""
_STRIP_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def detokenizers(
    document: dict[str, Any],
    vocabulary: Mapping[str, int],
    added_tokens: Sequence[AddedToken],
    decode: Callable[[list[str]], str],
) -> Callable[[Sequence[int]], Detokenizer]:
    """Return what makes a detokenizer from the ids of a prompt; `decode` is the decoder of the `tokenizers` package.

    Raises ConfigError for a decoder that cannot be followed token by token.
    """
    decoder = steps(document, "decoder")
    kinds = [step["type"] for step in decoder]
    if kinds in BYTE_LEVEL_DECODERS:
        return partial(ByteLevelDetokenizer, vocabulary_pieces(vocabulary) | added_pieces(added_tokens))
    texts = {token_id: token for token, token_id in vocabulary.items()}
    texts |= {token.token_id: "" if token.special else token.content for token in added_tokens}
    while kinds[-1:] == ["Fuse"] and {*kinds[:-1]} & _TOKEN_BY_TOKEN:  # nothing comes after it that it could matter to
        kinds.pop()
    if kinds and {*kinds} <= _TOKEN_BY_TOKEN:
        spoken = texts.keys() - {token.token_id for token in added_tokens if token.special}
        return partial(SeparateTokensDetokenizer, {one: texts[one] for one in spoken}, decode)
    # Without a decoder the package writes a space between two tokens.
    piece, strips_first_space = _followed(decoder) if document.get("decoder") else (" {}".format, True)
    pieces = {token_id: piece(text) if text else "" for token_id, text in texts.items()}
    return partial(ByteFallbackDetokenizer, pieces, strips_first_space)


def _followed(decoder: Sequence[dict[str, Any]]) -> tuple[Callable[[str], str | bytes], bool]:
    """Return what each token becomes, and whether a space at the beginning of the whole text is dropped."""
    rest = [*decoder]
    replaced: list[tuple[str, str]] = []
    while rest and rest[0]["type"] == "Replace" and "String" in rest[0]["pattern"]:
        step = rest.pop(0)
        replaced.append((step["pattern"]["String"], step["content"]))
    byte_fallback = _next_is("ByteFallback", rest)
    strips_first_space = _next_is("Fuse", rest) and rest == [_STRIP_FIRST_SPACE]
    if rest and not strips_first_space:
        have = f"decoder {[step['type'] for step in decoder]}"
        raise ConfigError(f"tokenizer.json: {have} cannot be followed token by token; supported are {SUPPORTED}")

    def piece(text: str) -> str | bytes:
        for old, new in replaced:
            text = text.replace(old, new)
        byte = _BYTE.fullmatch(text) if byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else text

    return piece, strips_first_space


def _next_is(kind: str, rest: list[dict[str, Any]]) -> bool:
    """Whether the next step is of this kind, which is then taken off."""
    return bool(rest and rest[0]["type"] == kind and rest.pop(0))
