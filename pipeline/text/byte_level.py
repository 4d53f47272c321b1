"""A byte-level `tokenizer.json` (GPT-2, Llama 3, Qwen, SmolLM style) as tiktoken ranks, or the reason why not."""

import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.text.added_tokens import AddedToken
from pipeline.text.byte_pair import BytePairEngine
from pipeline.text.detokenizer import ByteLevelDetokenizer
from pipeline.text.merges import Inexact, MergeList
from pipeline.text.normalization import nfc
from pipeline.text.split_patterns import split_pattern
from pipeline.text.tokenizer_json import listed_tokens, steps


def _byte_alphabet() -> str:
    """Return the 256 characters that stand for bytes 0..255 (GPT-2, `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves, the rest are numbered from U+0100 on.
    """
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return "".join(chr(value if value in itself else next(stand_ins)) for value in range(256))


ALPHABET = _byte_alphabet()
BYTE_LEVEL_DECODERS = (["ByteLevel"], ["ByteLevel", "Fuse"])
"""The same: after ByteLevel there is one text already."""
# Characters below 0x100 that stand for no byte are sent out of Latin-1, so that encoding them fails.
_TO_BYTES = dict.fromkeys(range(256), 0xFFFF) | {ord(letter): value for value, letter in enumerate(ALPHABET)}


def vocabulary_pieces(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of every token of the vocabulary, by id."""
    return {token_id: _decoded(token) for token, token_id in vocabulary.items()}


def added_pieces(added_tokens: Iterable[AddedToken]) -> dict[int, bytes]:
    """Return the bytes of every added token, by id; a special one has none."""
    return {token.token_id: b"" if token.special else _decoded(token.content) for token in added_tokens}


def _decoded(token: str) -> bytes:
    """Return what the ByteLevel decoder makes of `token`: text outside the byte alphabet stands for itself."""
    try:
        return token.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def template(document: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that are put before and after a text. Raises Inexact if anything else is done to its ids."""
    processors = [step for step in steps(document, "post_processor") if step["type"] != "ByteLevel"]
    if not processors:
        return [], []
    if (kinds := [step["type"] for step in processors]) != ["TemplateProcessing"]:
        raise Inexact(f"post_processor {kinds}")
    [processor] = processors
    ids: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for item in processor["single"]:
        if "Sequence" in item:
            texts += item["Sequence"]["id"] == "A"
        else:
            ids[min(texts, 1)].extend(processor["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    if texts != 1:
        raise Inexact(f"post_processor template with {texts} texts")
    return ids


def byte_level_engine(document: dict[str, Any], bos_token: str | None) -> BytePairEngine:
    """Build an engine whose ids are those of the `tokenizers` package. Raises Inexact where that cannot be had."""
    model, decoders = document["model"], [step["type"] for step in steps(document, "decoder")]
    if model.get("type", "BPE") != "BPE" or "merges" not in model or decoders not in BYTE_LEVEL_DECODERS:
        decoder = (document.get("decoder") or {}).get("type")
        raise Inexact(f"model {model.get('type')} with decoder {decoder} is not byte-level BPE")
    changes = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if changes:
        raise Inexact(f"model has {changes}")
    pattern = split_pattern(steps(document, "pre_tokenizer"))
    normalizers = [step["type"] for step in steps(document, "normalizer")]
    if normalizers not in ([], ["NFC"]):
        raise Inexact(f"normalizer {normalizers}")
    normalize: Callable[[str], str] = nfc if normalizers else str
    prefix, suffix = template(document)
    vocabulary: dict[str, int] = model["vocab"]
    added_tokens = matched_tokens(document, vocabulary)
    ranked_ids = _ranked_ids(model, {token.content for token in added_tokens})
    named = {**vocabulary, **{token.content: token.token_id for token in added_tokens}}
    pieces = vocabulary_pieces(vocabulary)
    texts = pieces | added_pieces(as_decoded(token, normalize) for token in added_tokens)
    return BytePairEngine(
        ranks={pieces[token_id]: rank for rank, token_id in enumerate(ranked_ids)},
        token_ids=ranked_ids,
        pattern=pattern,
        detokenizer=functools.partial(ByteLevelDetokenizer, texts),
        added_tokens=added_tokens,
        prefix=prefix,
        suffix=suffix,
        bos_id=named.get(bos_token) if bos_token else next(iter(prefix), None),
        normalize=normalize,
    )


def matched_tokens(document: dict[str, Any], vocabulary: Mapping[str, int]) -> list[AddedToken]:
    """Check that every added token is matched by its text alone, and has the id that the package gives it."""
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        raise Inexact("the ids of the vocabulary are not 0, 1, 2, ...")
    next_id = len(vocabulary)
    tokens: dict[str, AddedToken] = {}
    for token in listed_tokens(document):
        if not token.content or token.content in tokens or token.token_id != vocabulary.get(token.content, next_id):
            raise Inexact(f"added token {token.content!r} with id {token.token_id}")
        next_id += token.content not in vocabulary
        tokens[token.content] = token
    return list(tokens.values())


def as_decoded(token: AddedToken, normalize: Callable[[str], str]) -> AddedToken:
    """The token with the text that it is decoded to: the package decodes what it looks for.

    It knows special tokens by that text, and so knows none whose text normalization changes.
    """
    content = normalize(token.content) if token.is_normalized else token.content
    return replace(token, content=content, special=token.special and content == token.content)


def _ranked_ids(model: dict[str, Any], added: Container[str]) -> list[int]:
    """Return the ids of the tokens that tiktoken may produce, in the order of their ranks."""
    vocabulary: dict[str, int] = model["vocab"]
    words = [token for token in vocabulary if token not in added]
    letters = set(ALPHABET)
    if not (letters <= vocabulary.keys() and letters.issuperset("".join(words))):
        raise Inexact("the vocabulary is not written in the byte alphabet, or lacks single bytes")
    merge_list = MergeList(vocabulary, merge_pairs(model["merges"]))
    ids = [*map(vocabulary.__getitem__, ALPHABET), *merge_list.live]
    if model.get("ignore_merges"):
        ranked = set(ids)
        for token in words:
            if vocabulary[token] not in ranked:
                merge_list.require_unreachable(token)
                ids.append(vocabulary[token])
    return ids


def merge_pairs(merges: list[Any]) -> Iterable[Sequence[str]]:
    """Return the pairs of tokens that merges join: written as "a b" in older files, as ["a", "b"] in newer ones."""
    return (merge.split(" ") for merge in merges) if merges and isinstance(merges[0], str) else merges
