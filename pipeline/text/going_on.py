"""A conversation that goes on keeps the token ids that it has: a model may choose others than its text is cut into."""

from array import array
from collections.abc import Sequence

from pipeline.text.tokenizer import Tokenizer


def going_on(tokenizer: Tokenizer, earlier: "array[int]", rendered: "array[int]") -> "array[int]":
    """Return ids with the text of those of a `rendered` chat, which begin with `earlier` ids as far as that is theirs.

    `earlier` are the prompt of a turn before and its answer. Special tokens cut both into parts, over whose ends no
    tokenizer merges. A part with the same text keeps its earlier ids; so does the last, where more text follows in
    the same part, and one of which the template has trimmed whole tokens away.
    """
    kept: array[int] = array("i")
    begin, at = 0, 0
    while True:
        end, to = _end(tokenizer, earlier, begin), _end(tokenizer, rendered, at)
        part = _part(
            tokenizer, earlier[:begin], earlier[begin:end], rendered[:at], rendered[at:to], end == len(earlier)
        )
        if part is None:
            return kept + rendered[at:]
        kept += part
        if end == len(earlier) or to == len(rendered) or earlier[end] != rendered[to]:
            return kept + rendered[to:]
        kept.append(earlier[end])
        begin, at = end + 1, to + 1


def _end(tokenizer: Tokenizer, ids: "array[int]", begin: int) -> int:
    """Where the part that begins there ends: before a special token."""
    return next((at for at in range(begin, len(ids)) if ids[at] in tokenizer.special_ids), len(ids))


def _part(
    tokenizer: Tokenizer,
    before: "array[int]",
    earlier: "array[int]",
    rendered_before: "array[int]",
    rendered: "array[int]",
    last: bool,
) -> "array[int] | None":
    """Return the ids of a part; None where the earlier ones have another text."""
    if earlier == rendered:
        return earlier
    text, need = _text(tokenizer, before, earlier), _text(tokenizer, rendered_before, rendered)
    if last and text and need.startswith(text):
        part = earlier + tokenizer.chat_ids(need[len(text) :])
    else:
        part = earlier
        while part and len(text) > len(need) and not text[len(need) :].strip():
            part = part[:-1]
            text = _text(tokenizer, before, part)
    return part if _text(tokenizer, before, part) == need else None


def _text(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    detokenizer = tokenizer.detokenizer(before)
    return "".join([detokenizer.push(one) for one in ids]) + detokenizer.flush()
