"""Unicode normalization (NFC) as the `tokenizers` package does it, in pieces, so that other threads go on meanwhile.

Python's tables are newer than the package's, and differ with Python's version; and `unicodedata.normalize` takes the
square of the length for marks in a row, while it holds the interpreter lock. So only text that no version of Unicode
changes is left as it is; the package normalizes the rest.
"""

import functools
import re
from collections.abc import Callable

from pipeline.errors import ConfigError, RequestError
from pipeline.system.threads import give_way

PLAIN = (
    "\x00-\u02ff\u0391-\u03a1\u03a3-\u03ce\u0400-\u0482\u048a-\u052f\u0531-\u0556\u0561-\u0587"  # Latin to Armenian
    "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0660-\u066d\u0671-\u06d5"  # Hebrew, Arabic
    "\u0905-\u0939\u0e01-\u0e37\u0e3f-\u0e47"  # Devanagari, Thai
    "\u1000-\u1021\u10d0-\u10f8\u1780-\u17d1\u1e00-\u1e9b\u1ea0-\u1ef9"  # Burmese, Georgian, Khmer, Latin
    "\u2002-\u205e\u20a0-\u20bf\u2100-\u2125\u2190-\u2328\u232b-\u23ce\u2460-\u24fe\u2500-\u2adb"  # signs
    "\u3000-\u3029\u3041-\u3096\u309b-\u30ff\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3\ufe0f\uff01-\uff5e"  # CJK
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6c5\U0001f910-\U0001f93e\U00020000-\U0002a6d6"  # emoji, CJK
)
"""Characters that NFC neither changes nor joins to what stands before them, in any version of Unicode."""
PIECE_CHARACTERS = 10_000
LONGEST_RUN = 100_000
"""Characters in a row of which none is plain: they can only be normalized together, in 15 ms."""
_PLAIN = re.compile(f"[{PLAIN}]")
_NOT_PLAIN = re.compile(f"[^{PLAIN}]")


def nfc(text: str) -> str:
    """Return `text` in NFC. Raises RequestError for too long a run, ConfigError where the package is not installed."""
    if text.isascii():
        return text
    pieces: list[str] = []
    start = 0
    while start < len(text):
        begin = start + PIECE_CHARACTERS
        cut = _PLAIN.search(text, begin, begin + LONGEST_RUN)
        if cut is None and begin + LONGEST_RUN < len(text):
            raise RequestError(
                f"more than {LONGEST_RUN} characters in a row from character {begin} that can only be normalized "
                "together, as combining marks: put a space or a letter in between"
            )
        end = cut.start() if cut else len(text)
        piece = text[start:end]
        pieces.append(_package()(piece) if _NOT_PLAIN.search(piece) else piece)
        start = end
        give_way()
    return "".join(pieces)


@functools.cache
def _package() -> Callable[[str], str]:
    try:
        from tokenizers import normalizers
    except ImportError as error:
        need = "text with combining marks, or in rare scripts, is normalized by the `tokenizers` package"
        raise ConfigError(f"{need}: pip install tokenizers") from error
    normalize: Callable[[str], str] = normalizers.NFC().normalize_str
    return normalize
