"""`tokenizer.json` as it is read by both engines: its text, and its content with every token that other files add."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.system.small_files import TOKENIZER_LIMIT_BYTES, parse_object, read_small_file
from pipeline.text.added_tokens import FLAGS, AddedToken, AddedTokens, Declared

_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The parts that a file may leave out, each with the key of its Sequence."""


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """One `tokenizer.json`. The document has all `added_tokens`, `raw` only those of the file."""

    path: Path
    raw: bytes
    document: dict[str, Any]
    added_tokens: AddedTokens


def read_tokenizer_json(path: Path, declared: Declared) -> TokenizerJson:
    """Read the file, and add what `declared` adds. Raises CheckpointError where the two contradict each other."""
    raw = read_small_file(path, TOKENIZER_LIMIT_BYTES)
    document = parse_object(raw, str(path))
    ids = vocabulary_of(document)
    added_tokens = AddedTokens(listed_tokens(document), declared, ids.get, set(ids.values()), len(ids))
    entries = [{**asdict(token), "id": token.token_id} for token in added_tokens.tokens]
    return TokenizerJson(path, raw, {**document, "added_tokens": entries}, added_tokens)


def vocabulary_of(document: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the vocabulary without added tokens; a Unigram model lists pieces and scores in order."""
    vocabulary: dict[str, int] | list[tuple[str, float]] = document["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {piece: token_id for token_id, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def steps(document: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Return what a part of the document does, one after another; nothing where it is null or left out.

    A Sequence does what it holds, however deep: many files wrap a single step in one.
    """

    def flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
        if step is None:
            return []
        if step["type"] != "Sequence":
            return [step]
        return [one for inner in step[_SEQUENCES[part]] for one in flat(inner)]

    return flat(document.get(part))


def listed_tokens(document: dict[str, Any]) -> list[AddedToken]:
    """Return the added tokens that the document lists."""
    return [
        AddedToken(content=entry["content"], token_id=entry["id"], **{flag: entry[flag] for flag in FLAGS})
        for entry in document.get("added_tokens", [])
    ]
