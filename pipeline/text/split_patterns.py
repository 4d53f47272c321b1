"""How a `tokenizer.json` splits text into words, as the one regular expression that tiktoken takes.

tiktoken drops what its expression does not match, so an expression is accepted only if it is known to match every
character. Both pattern engines, Oniguruma there and fancy-regex here, agree on every character class used below
(compared over all code points, tokenizers 0.23 and tiktoken 0.14).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.text.merges import Inexact

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2 after every digit was made a word: a number takes no space, and space before a digit ends like a text ends.
GPT2_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
MISTRAL = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# SentencePiece style, where U+2581 stands for a space: the whole text, or words where no token goes on over a space.
WHOLE_TEXT, MARKED_WORDS = r"(?s:.+)", r"\u{2581}*[^\u{2581}]+|\u{2581}+"
KNOWN_PATTERNS = frozenset({GPT2, LLAMA3, QWEN2, QWEN3_5, MISTRAL})
COVERING_PATTERNS = KNOWN_PATTERNS | {GPT2_DIGITS, WHOLE_TEXT, MARKED_WORDS}


def split_pattern(steps: Sequence[dict[str, Any]]) -> str:
    """Return the expression that splits as these pre-tokenizers do. Raises Inexact if none is known to."""
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if _uses_own_pattern(steps[0]):
            return GPT2
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and _uses_own_pattern(steps[1]):
            return GPT2_DIGITS
        case ["Split", "ByteLevel"] if not _uses_own_pattern(steps[1]):
            return _known_split(steps[0])
        case kinds:
            raise Inexact(f"pre_tokenizer {kinds}")


def _uses_own_pattern(byte_level: dict[str, Any]) -> bool:
    if byte_level.get("add_prefix_space", True):
        raise Inexact("add_prefix_space")
    return bool(byte_level.get("use_regex", True))


def _known_split(split: dict[str, Any]) -> str:
    pattern: str = split["pattern"].get("Regex", "")
    keeps_matches = (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True))
    if pattern in KNOWN_PATTERNS and keeps_matches:
        return pattern
    raise Inexact(f"split pattern {split['pattern']}, {split['behavior']}")
