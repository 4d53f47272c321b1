"""A `tokenizer.json` in SentencePiece style (Llama 2, Mistral, Gemma) as tiktoken ranks, or the reason why not.

Such a list merges characters, with U+2581 for a space, and has tokens for single bytes, which spell the characters that
the vocabulary lacks. tiktoken merges bytes. So characters come first: the beginnings of each one's UTF-8 have ranks
below all merges, and it is whole before any merge of the list looks at it. A character that the vocabulary lacks may
have a beginning in common with one that it has; such a rank is spelt in bytes again. No other two neighbours join that
would not in the list: a rank is a beginning of one character, or of whole ones what the list makes of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.text.byte_level import as_decoded, matched_tokens, merge_pairs, template
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.coverage import SPACE_MARK
from pipeline.text.decoders import detokenizers
from pipeline.text.merges import Inexact, MergeList
from pipeline.text.split_patterns import MARKED_WORDS, WHOLE_TEXT
from pipeline.text.tokenizer_json import steps

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
PREPEND = {"type": "Prepend", "prepend": SPACE_MARK}
NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""It splits at spaces, of which none is left when it comes."""
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def sentence_piece_engine(document: dict[str, Any], bos_token: str | None) -> BytePairEngine:
    """Build an engine whose ids are those of the `tokenizers` package. Raises Inexact where that cannot be had."""
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model or not model.get("byte_fallback"):
        raise Inexact(f"model {model.get('type')} is no BPE with byte_fallback")
    others = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if changes := [key for key in others if model.get(key)]:
        raise Inexact(f"model has {changes}")
    if "ByteFallback" not in (kinds := [step["type"] for step in steps(document, "decoder")]):
        raise Inexact(f"decoder {kinds} makes no text of bytes")
    vocabulary: dict[str, int] = model["vocab"]
    if missing := [name for name in BYTES if name not in vocabulary]:
        raise Inexact(f"the vocabulary lacks {missing[0]} and {len(missing) - 1} other bytes")
    normalize, mark, splits = _marking(document)
    prefix, suffix = template(document)
    added_tokens = matched_tokens(document, vocabulary)
    words = _words(vocabulary, merge_pairs(model["merges"]))
    crosses = any(SPACE_MARK in word.lstrip(SPACE_MARK) for word in words)
    if crosses and splits:
        raise Inexact("a token goes on over a space, at which the pre_tokenizer splits")
    ranks, token_ids, spelt = _ranks(vocabulary, words)
    named = {**vocabulary, **{token.content: token.token_id for token in added_tokens}}
    return BytePairEngine(
        ranks=ranks,
        token_ids=token_ids,
        spelt=spelt,
        pattern=WHOLE_TEXT if crosses else MARKED_WORDS,
        detokenizer=detokenizers(document, vocabulary, [as_decoded(one, normalize) for one in added_tokens], str),
        added_tokens=added_tokens,
        prefix=prefix,
        suffix=suffix,
        bos_id=named.get(bos_token) if bos_token else next(iter(prefix), None),
        normalize=normalize,
        mark=mark,
    )


def _words(vocabulary: Mapping[str, int], merges: Any) -> list[str]:
    """The tokens that merges make, in their order."""
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    return [by_id[token_id] for token_id in MergeList(vocabulary, merges).live]


def _ranks(
    vocabulary: Mapping[str, int], words: Sequence[str]
) -> tuple[dict[bytes, int], list[int], dict[int, list[int]]]:
    """The ranks, the id of each, and the ids of those that are part of a character."""
    of_bytes = [vocabulary[name] for name in BYTES]
    ranks, token_ids = {bytes([value]): value for value in range(256)}, [*of_bytes]
    spelt: dict[int, list[int]] = {}
    for letter in (token for token in vocabulary if len(token) == 1):
        data = letter.encode()
        if len(data) == 1:
            token_ids[data[0]] = vocabulary[letter]
        for size in range(2, len(data) + 1):
            rank = ranks.setdefault(data[:size], len(token_ids))
            if rank == len(token_ids):
                token_ids.append(vocabulary[letter])
                if size < len(data):
                    spelt[rank] = [of_bytes[value] for value in data[:size]]
    for word in words:
        ranks[word.encode()] = len(token_ids)
        token_ids.append(vocabulary[word])
    return ranks, token_ids, spelt


def _marking(document: dict[str, Any]) -> tuple[Callable[[str], str], Callable[[str, bool], str] | None, bool]:
    """Return what is done to a text before and after added tokens are looked for in it, and whether spaces split it."""
    normalizers, before = steps(document, "normalizer"), steps(document, "pre_tokenizer")
    if before and before[0]["type"] == "Metaspace" and not normalizers and len(before) == 1:
        return str, *_metaspace(before[0])
    if before not in ([], [NO_SPLIT]):
        raise Inexact(f"pre_tokenizer {[step['type'] for step in before]}")
    if normalizers == [REPLACE]:
        return _replaced, None, False
    if normalizers == [PREPEND, REPLACE]:
        return _prepended, None, False
    if not normalizers and not before:
        return str, None, False
    raise Inexact(f"normalizer {[step['type'] for step in normalizers]}")


def _metaspace(step: dict[str, Any]) -> tuple[Callable[[str, bool], str], bool]:
    scheme = step.get("prepend_scheme", "always")
    if step["replacement"] != SPACE_MARK or scheme not in ("always", "first", "never"):
        raise Inexact(f"pre_tokenizer Metaspace with {step['replacement']!r} and {scheme}")
    return functools.partial(_marked, scheme), bool(step.get("split", True))


def _marked(scheme: str, text: str, begins: bool) -> str:
    replaced = _replaced(text)
    prepends = scheme == "always" or (scheme == "first" and begins)
    return SPACE_MARK + replaced if prepends and not replaced.startswith(SPACE_MARK) else replaced


def _replaced(text: str) -> str:
    return text.replace(" ", SPACE_MARK)


def _prepended(text: str) -> str:
    return SPACE_MARK + _replaced(text) if text else text
