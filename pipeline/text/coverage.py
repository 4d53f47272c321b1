"""Whether a `tokenizer.json` has tokens for every text: what has none is not dropped in silence."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.text.byte_level import ALPHABET
from pipeline.text.byte_pair import COMPOSED_BYTES
from pipeline.text.split_patterns import COVERING_PATTERNS
from pipeline.text.tokenizer_json import TokenizerJson, steps

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
UTF8_BYTES = frozenset(range(0xF5)) - {0xC0, 0xC1}
"""The values of bytes that occur in UTF-8."""
_MARK_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
_SPACES = {r"\s", r"\s+", " +"}
_KEEP_TEXT = {"ByteLevel", "Digits", "Metaspace", "NFC", "Prepend", "Split"}


def unknown_token(source: TokenizerJson, vocabulary: Mapping[str, int]) -> str | None:
    """Return the token that stands for what the vocabulary lacks; None where it lacks nothing.

    Raises CheckpointError where the `tokenizers` package would drop what the vocabulary lacks.
    """
    lacking = _lacking_bytes(source.document, vocabulary)
    model = source.document["model"]
    if not lacking:
        return None
    if isinstance(model["vocab"], list) and model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    if model.get("unk_token") is not None:
        return str(model["unk_token"])
    raise CheckpointError(
        f"{source.path}: the vocabulary has no token for byte 0x{min(lacking):02X} ({len(lacking)} missing), and there "
        "is neither an unk_token nor byte_fallback: text would be dropped; use another tokenizer"
    )


def require_all_text(source: TokenizerJson) -> None:
    """Raise CheckpointError where a step leaves out text that is more than whitespace between words."""
    leaving = [step["type"] for step in steps(source.document, "pre_tokenizer") if _leaves_out(step)]
    leaving += [step["type"] for step in steps(source.document, "post_processor") if _has_no_text(step)]
    if leaving:
        fault = "leaves out text, which would be dropped"
        raise CheckpointError(f"{source.path}: {leaving[0]} {fault}; use another tokenizer")


def token_bytes(source: TokenizerJson, vocabulary: Mapping[str, int]) -> int | None:
    """Return the most bytes of text that one token can stand for; None where a step may drop text, or is unknown here.

    Every byte must have a token of its own, else a token for what is unknown stands for text of any length.
    """
    before, added_tokens = _steps(source.document), source.added_tokens.tokens
    kinds = {step["type"] for step in before if step != _MARK_SPACES}
    drops_text = any(step.get("behavior") == "Removed" for step in before) or not kinds <= _KEEP_TEXT
    strips_text = any(one.lstrip or one.rstrip for one in added_tokens)
    if drops_text or strips_text or _lacking_bytes(source.document, vocabulary):
        return None
    longest = max(len(token.encode()) for token in [*vocabulary, *(one.content for one in added_tokens)])
    return longest * (COMPOSED_BYTES if "NFC" in kinds else 1)


def _leaves_out(step: dict[str, Any]) -> bool:
    if step["type"] == "CharDelimiterSplit":
        return not step["delimiter"].isspace()
    if step.get("behavior") != "Removed":
        return False
    [pattern] = step.get("pattern", {"": "punctuation"}).values()
    return pattern not in COVERING_PATTERNS if step.get("invert") else not (pattern.isspace() or pattern in _SPACES)


def _has_no_text(step: dict[str, Any]) -> bool:
    return step["type"] == "TemplateProcessing" and not any(
        one.get("Sequence", {}).get("id") == "A" for one in step["single"]
    )


def _lacking_bytes(document: dict[str, Any], vocabulary: Mapping[str, int]) -> frozenset[int]:
    """The bytes of UTF-8 that have no token of their own, wherever in a word they stand."""
    if "max_input_chars_per_word" in document["model"]:  # WordPiece: a word is known as a whole, or not at all
        return UTF8_BYTES
    byte_level = any(step["type"] == "ByteLevel" for step in _steps(document))
    if not byte_level and not document["model"].get("byte_fallback"):
        return UTF8_BYTES
    name = ALPHABET.__getitem__ if byte_level else "<0x{:02X}>".format
    model = document["model"] if byte_level else {}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return frozenset(
        value
        for value in UTF8_BYTES
        if not {before + name(value) + after for before in ("", prefix) for after in ("", suffix)} <= vocabulary.keys()
    )


def _steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of the pre-tokenizer and of the normalizer."""
    return steps(document, "pre_tokenizer") + steps(document, "normalizer")
