"""Text to token ids and back, as the checkpoint's own tokenizer does it."""

import os
from array import array
from collections.abc import Callable, Container, Iterator, Sequence, Set
from pathlib import Path
from typing import Protocol, SupportsIndex

from pipeline.errors import CheckpointError, ConfigError, PenstockError, RequestError
from pipeline.system.threads import slices
from pipeline.text.byte_level import byte_level_engine
from pipeline.text.chat_templates import NO_TEMPLATES, ChatTemplates, read_chat_templates
from pipeline.text.detokenizer import Detokenizer, ShowingDetokenizer
from pipeline.text.hugging_face import HuggingFaceEngine
from pipeline.text.merges import Inexact
from pipeline.text.prompts import SLICE_TOKENS, TokenIds, id_slices
from pipeline.text.rank_file import is_rank_file, rank_file_engine
from pipeline.text.sentence_pieces import sentence_piece_engine
from pipeline.text.tekken import tekken_engine
from pipeline.text.tokenizer_config import TokenizerConfig, read_tokenizer_config
from pipeline.text.tokenizer_json import read_tokenizer_json

MIXED = "the folder mixes the files of two checkpoints"
ONLY_THERE = "tokenizer.json only; fetch or convert tokenizer.json"
_MALFORMED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError, OverflowError)
"""Broken files raise these."""


class Engine(Protocol):
    """Turns checked text into ids, and ids into text; `ordinary_size` is 1 + the highest id of a word.

    `special_tokens` are the names of those that have no text.

    A `detokenizer` is made from the ids that come before.
    Longer texts than `longest_text_bytes` would hold other threads up for too long, or take too much memory.
    """

    longest_text_bytes: int
    bos_id: int | None
    special_tokens: dict[int, str]
    ordinary_size: int
    detokenizer: Callable[[Sequence[int]], Detokenizer]

    @property
    def token_bytes(self) -> int | None:
        """The most bytes of text that one token can stand for; None where it is not known."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> "array[int]":
        """Return the ids of `text`, with or without those that the checkpoint puts around every text.

        In a list, each collection of garbage would visit millions of them.
        """


class ModelTokenizer(Protocol):
    """`model.tokenizer` turns text into token ids and back as `generate` does, whatever files it was read from.

    Special tokens that are written in a text become special tokens. Long texts take 0.1 seconds per MB; in a program
    that serves others meanwhile, call `encode` and `count` by `asyncio.to_thread`. `special_ids` have no text.
    """

    special_ids: Set[int]

    @property
    def chat_templates(self) -> ChatTemplates:
        """The chat templates of the checkpoint."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids that `generate(text)` begins with: with the BOS token where the checkpoint adds one.

        A text that begins with the BOS token itself, as rendered chat templates do, gets no second one; without
        `add_special_tokens` none is added. Raises RequestError for text that is too long or is not Unicode text.
        """

    def count(self, text: str) -> int:
        """Return how many tokens of the context `generate(text)` takes for it. Raises as `encode` does."""

    def decode(self, ids: TokenIds | Iterator[SupportsIndex]) -> str:
        """Return the text of `ids`, in which special tokens have none. Raises RequestError for what is no id."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one token has inside of a text, which may be part of a character.

        Of a special token, which has no text, they are those of its name; an id that no token has has none.
        """


class Tokenizer:
    """A checkpoint's tokenizer, guarded against text and ids that it cannot take.

    `vocabulary_size` is the model's: ids below it that no token has decode to nothing.
    """

    def __init__(self, engine: Engine, vocabulary_size: int, chat_templates: ChatTemplates = NO_TEMPLATES) -> None:
        if engine.ordinary_size > vocabulary_size:
            have = f"ids up to {engine.ordinary_size - 1}, the model only {vocabulary_size} of them"
            raise CheckpointError(f"the tokenizer has {have}: {MIXED}")
        if beyond := [token_id for token_id in engine.encode("") if token_id >= vocabulary_size]:
            have = f"puts id {beyond[0]} around every text, the model has {vocabulary_size} ids"
            raise CheckpointError(f"the tokenizer {have}: {MIXED}")
        self._engine = engine
        self.chat_templates = chat_templates
        self.vocabulary_size = vocabulary_size
        self.bos_id = engine.bos_id
        self.special_ids: Set[int] = engine.special_tokens.keys()
        self.special_tokens = {name: token_id for token_id, name in engine.special_tokens.items()}
        self._lone: Detokenizer | None = None

    def fewest_tokens(self, text: str) -> int:
        """Return a lower bound of the tokens of `text`, without tokenising it. Raises RequestError as `encode` does."""
        text_bytes = self._checked_bytes(text)
        return -(-text_bytes // (self._engine.token_bytes or text_bytes or 1))

    def checkpoint_ids(self, text: str, *, add_special_tokens: bool = True) -> "array[int]":
        """Return the ids of `text`, with the BOS token where the checkpoint's own tokenizer adds it.

        Special tokens written in the text become special tokens. Takes 0.1 seconds per MB of usual text and up to
        2 seconds per MB of one endless word, while other threads can run. Raises RequestError for text that is too
        long or is not Unicode text.
        """
        self._checked_bytes(text)
        try:
            ids = self._engine.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise RequestError(f"the tokenizer cannot take this text of {len(text)} characters: {error}") from error
        self._check_ids(ids)
        return ids

    def prompt_ids(self, text: str) -> "array[int]":
        """Return the ids of `text` as `checkpoint_ids` does, but one BOS token where the text brings its own already.

        Rendered chat templates begin with it, and the tokenizer's own before it would double it.
        """
        ids = self.checkpoint_ids(text)
        if self.bos_id is not None and (ids[:2] + self._engine.encode("")[:1]).tolist() == [self.bos_id] * 3:
            del ids[0]
        return ids

    def chat_ids(self, text: str) -> "array[int]":
        """Return the ids of a rendered chat, whose special tokens are all the template's own. Raises as `encode`."""
        return self.checkpoint_ids(text, add_special_tokens=False)

    @property
    def longest_text(self) -> int:
        """The most bytes that a text may have."""
        return self._engine.longest_text_bytes

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text` as `prompt_ids` does, or without special tokens that the text does not have."""
        return (self.prompt_ids(text) if add_special_tokens else self.chat_ids(text)).tolist()

    def count(self, text: str) -> int:
        """Return how many ids `encode` returns."""
        return len(self.prompt_ids(text))

    def decode(self, ids: TokenIds | Iterator[SupportsIndex]) -> str:
        """Return the text of `ids` without special tokens. Raises RequestError for ids outside the vocabulary."""
        if isinstance(ids, str):
            raise RequestError("ids: need token ids, have a text")
        detokenizer = self.detokenizer()
        texts = [detokenizer.push(one) for part in id_slices(ids, self.vocabulary_size, "ids") for one in part]
        return "".join(texts) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token: see `ModelTokenizer`."""
        if (name := self._engine.special_tokens.get(token_id)) is not None:
            return name.encode()
        if self._lone is None:
            self._lone = self._engine.detokenizer(())
        return self._lone.piece(token_id)

    def detokenizer(self, prompt_ids: Sequence[int] = (), shown_tokens: Container[str] = ()) -> Detokenizer:
        """Return a detokenizer for what follows `prompt_ids`; without them, one at the beginning of a text.

        Special tokens whose names are among `shown_tokens` have these as their texts.
        """
        shown = {token_id: name for token_id, name in self._engine.special_tokens.items() if name in shown_tokens}
        detokenizer = self._engine.detokenizer(prompt_ids)
        return ShowingDetokenizer(detokenizer, shown) if shown else detokenizer

    def _checked_bytes(self, text: str) -> int:
        """How many bytes the text has. Raises RequestError where they are too many, or it is no Unicode text."""
        if not isinstance(text, str):
            raise RequestError(f"the text: need str, have {type(text).__name__}")
        most = self._engine.longest_text_bytes
        try:
            text_bytes = len(text) if text.isascii() or len(text) > most else len(text.encode())
        except UnicodeEncodeError as error:
            have = f"a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
            raise RequestError(f"the text has {have}: that is no character; replace it") from error
        if text_bytes > most:
            have = f"{text_bytes} bytes or more, at most {most} can be tokenized"
            raise RequestError(f"the text has {have}; give token ids instead")
        return text_bytes

    def _check_ids(self, ids: Sequence[int]) -> None:
        for begin in slices(len(ids), SLICE_TOKENS):
            part = ids[begin : begin + SLICE_TOKENS]
            size = self.vocabulary_size
            if min(part) < 0 or max(part) >= size:
                at, token_id = next((at, one) for at, one in enumerate(part, begin) if not 0 <= one < size)
                raise RequestError(f"token id {token_id} at position {at} is outside the vocabulary of {size}")


def _is_panic(error: BaseException) -> bool:
    """Whether an engine has panicked: both are Rust, where that is a BaseException that no other handler would take."""
    return type(error).__name__ == "PanicException"


def load_tokenizer(folder: Path, vocabulary_size: int) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder; `vocabulary_size` is the number of ids the model has.

    `tokenizer.json` is the truth where there is one: tiktoken reads it where that is known to be exact, and else the
    `tokenizers` package. Only a folder without it is read through `tokenizer.model` in tiktoken's
    format, or else `tekken.json`. What `tokenizer_config.json` and its older companions declare counts for all of
    them. Never uses the network.

    Raises CheckpointError if there is none, it is broken or its files contradict each other, ConfigError if it is of a
    kind that is not supported.
    """
    try:
        config = read_tokenizer_config(folder)
        engine = _load_engine(folder, config, vocabulary_size)
        return Tokenizer(engine, vocabulary_size, read_chat_templates(folder, config))
    except PenstockError:
        raise
    except BaseException as error:
        if not (isinstance(error, _MALFORMED) or _is_panic(error)):
            raise
        raise CheckpointError(f"{folder}: the tokenizer files are malformed ({error!r}); fetch them again") from error


def _load_engine(folder: Path, config: TokenizerConfig, vocabulary_size: int) -> Engine:
    tokenizer_json, ranks, tekken = (folder / name for name in ("tokenizer.json", "tokenizer.model", "tekken.json"))
    if os.path.lexists(tokenizer_json):
        source = read_tokenizer_json(tokenizer_json, config.declared)
        try:
            source.added_tokens.require_unanimous()
            if source.document["model"].get("byte_fallback"):
                return sentence_piece_engine(source.document, config.bos_token)
            return byte_level_engine(source.document, config.bos_token)
        except Inexact as reason:
            return HuggingFaceEngine(source, config.bos_token, str(reason))
    try:
        if os.path.lexists(ranks) and is_rank_file(ranks):
            return rank_file_engine(ranks, config, vocabulary_size)
        if os.path.lexists(tekken):
            return tekken_engine(tekken, config, vocabulary_size)
    except Inexact as reason:
        raise ConfigError(f"{folder}: {reason} is supported in {ONLY_THERE}") from reason
    if os.path.lexists(ranks):
        what = "a SentencePiece model, which is read through"
        raise ConfigError(f"{ranks} is {what} {ONLY_THERE}, and pip install tokenizers")
    raise CheckpointError(f"{folder} has no tokenizer: need tokenizer.json, tokenizer.model or tekken.json")
