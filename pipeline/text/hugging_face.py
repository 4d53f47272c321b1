"""Every other `tokenizer.json`, through the `tokenizers` package."""

from array import array
from dataclasses import asdict, replace
from typing import Any

from pipeline.errors import CheckpointError, ConfigError, RequestError
from pipeline.system.threads import slices
from pipeline.text.added_tokens import AddedToken
from pipeline.text.byte_level import merge_pairs, template
from pipeline.text.byte_pair import SLICE_IDS
from pipeline.text.coverage import require_all_text, token_bytes, unknown_token
from pipeline.text.decoders import detokenizers
from pipeline.text.merges import Inexact
from pipeline.text.tokenizer_json import TokenizerJson


class HuggingFaceEngine:
    """Encodes with the `tokenizers` package; decodes with our own detokenizers, which never emit half a character.

    Raises ConfigError without the package, or for a decoder that we have no exact incremental form of; CheckpointError
    if the package refuses the file, gives an added token another id than the files say, or would drop text.
    """

    longest_text_bytes = 2**20  # a million ids; it hands them over, and frees 140 MB, in one go each

    def __init__(self, source: TokenizerJson, bos_token: str | None, why: str) -> None:
        path = source.path
        try:
            import tokenizers
        except ImportError as error:
            fault = f"is no BPE that tiktoken can express exactly ({why})"
            need = "reading it needs the `tokenizers` package: pip install tokenizers"
            raise ConfigError(f"{path} {fault}; {need}") from error
        _check_merges(source)
        require_all_text(source)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source.raw.decode())
        except Exception as error:  # the package raises nothing narrower
            raise CheckpointError(f"{path}: {error}; fetch the file again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if source.document["model"].get("dropout"):  # a draw at each merge, which is for training
            self._tokenizer.model.dropout = None
        self._add(source)
        added_tokens = [self._as_decoded(token) for token in source.added_tokens.tokens]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        self.detokenizer = detokenizers(source.document, vocabulary, added_tokens, self._decode)
        self.special_tokens = {token.token_id: token.content for token in added_tokens if token.special}
        self.ordinary_size = max(vocabulary.values()) + 1
        self.token_bytes = token_bytes(source, vocabulary)
        self._unknown = unknown_token(source, vocabulary)
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

    def _decode(self, tokens: list[str]) -> str:
        return str(self._tokenizer.decoder.decode(tokens))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> "array[int]":
        """Return the ids of `text`, around it those that the checkpoint adds to every text.

        Raises RequestError for what the vocabulary lacks.
        """
        try:
            # `encode` holds the interpreter lock all the while, and records places in the text that are not needed.
            [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise RequestError(f"the tokenizer cannot take this text of {len(text)} characters: {error}") from error
        ids = array("i")
        from_package: list[int] = encoding.ids
        for begin in slices(len(from_package), SLICE_IDS):
            ids.extend(from_package[begin : begin + SLICE_IDS])
        if self._unknown is not None:
            self._refuse_unknown(self._unknown, text, ids, add_special_tokens)
        return ids

    def _refuse_unknown(self, unknown: str, text: str, ids: "array[int]", add_special_tokens: bool) -> None:
        """Raise RequestError where `ids` say `unknown` of something else than its own name in the text."""
        unknown_id = self._tokenizer.token_to_id(unknown)
        blocks = (begin for begin in slices(len(ids), SLICE_IDS) if unknown_id in ids[begin : begin + SLICE_IDS])
        if (first := next(blocks, None)) is None:
            return
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        for position in range(first, len(ids)):
            if ids[position] != unknown_id or (place := encoding.token_to_chars(position)) is None:
                continue
            begin, end = place
            if text[begin:end].strip() not in ("", unknown):
                raise RequestError(
                    f"character {begin} of the text, {text[begin]!r} (U+{ord(text[begin]):04X}), has no token in this "
                    f"tokenizer, which would say {unknown!r} in its place; leave it out"
                )


def _check_merges(source: TokenizerJson) -> None:
    """The package ends the process for a merge whose second token lacks the prefix that all such tokens have."""
    model = source.document["model"]
    if prefix := model.get("continuing_subword_prefix"):
        for _, right in merge_pairs(model.get("merges", [])):
            if not right.startswith(prefix):
                fault = f"does not begin with the continuing_subword_prefix {prefix[:80]!r}"
                have = f"a merge ends in {right[:80]!r}, which {fault}"
                raise CheckpointError(f"{source.path}: {have}; fetch the file again")


def _in_the_package(token: AddedToken) -> Any:
    import tokenizers

    flags = {name: value for name, value in asdict(token).items() if name not in ("content", "token_id")}
    return tokenizers.AddedToken(token.content, **flags)


def _first_of_template(document: dict[str, Any]) -> int | None:
    try:
        prefix, _ = template(document)
    except Inexact:
        return None
    return next(iter(prefix), None)
