"""Tokens that are matched in the text before it is split, and the one rule by which several files declare them."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import CheckpointError
from pipeline.text.merges import Inexact

NO_ID = -1
"""The id of a token that a file names without saying it."""
LONGEST_CONTENT = 512
FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")
"""The fields of an `AddedToken` that files state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedToken:
    """A token that is matched in the text before it is split.

    A special one has no text of its own when decoded. A `normalized` one is looked for after normalization; None means
    if it is not special. The other flags mean what they mean in the `tokenizers` package: only between two words, and
    with the whitespace on one side.
    """

    content: str
    token_id: int
    special: bool = True
    normalized: bool | None = None
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @property
    def is_normalized(self) -> bool:
        """Return what `normalized` says, or means."""
        return not self.special if self.normalized is None else self.normalized

    @property
    def piece(self) -> bytes:
        """Return what it is decoded to where its content is text."""
        return b"" if self.special else self.content.encode()

    def require_simple(self) -> None:
        """Raise Inexact for a token that is matched in another way than by its text."""
        flags = [flag for flag in ("single_word", "lstrip", "rstrip") if getattr(self, flag)]
        if flags or len(self.content) > LONGEST_CONTENT:
            raise Inexact(f"added token {self.content[:80]!r} (id {self.token_id}, flags {flags})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """The tokens that the files beside the vocabulary declare: some with ids, some by a name or in a list without ids.

    `complete` says that those with ids are all that count; else the tokens that the vocabulary's own file lists are
    declared, too, and those with ids only add to them.
    """

    with_ids: tuple[AddedToken, ...] = ()
    complete: bool = True
    named: tuple[AddedToken, ...] = ()
    extra: tuple[AddedToken, ...] = ()


class AddedTokens:
    """The added tokens of a tokenizer: those that the vocabulary's own file lists, as the other files change them.

    The rule is that of transformers.AutoTokenizer. A token that is declared with an id gets the flags of its
    declaration, and is special if it has a name, too. A token that is only named or in a list is added, unless it is
    there already. A token of the vocabulary keeps its id, `ordinary_id(content)`; another one without an id gets the
    next one after all, which is `size` at least.

    `tokens` are all of them, `additions` what was declared beside `listed`, in order; `redeclared` is the last of them
    that contradicts another declaration in more than being special, which is for the `tokenizers` package to sort out.

    Raises CheckpointError where two files give one id to two tokens, or one token two ids.
    """

    def __init__(
        self,
        listed: Sequence[AddedToken],
        declared: Declared,
        ordinary_id: Callable[[str], int | None],
        ordinary_ids: Container[int],
        size: int,
    ) -> None:
        self._ordinary_id, self._ordinary_ids = ordinary_id, ordinary_ids
        self._tokens: dict[str, AddedToken] = {}
        self._content_of: dict[int, str] = {}
        self._next_id = size
        self.redeclared: AddedToken | None = None
        for token in listed:
            self._put(token)
        self.additions: list[AddedToken] = []
        names = {token.content for token in declared.named}
        for token in self._with_ids(declared):
            self._add(replace(token, special=token.special or token.content in names))
        known = {*self._tokens}
        for token in (*declared.named, *declared.extra):
            if token.content not in known:
                self._add(replace(token, token_id=self._id_of(token.content)))

    @property
    def tokens(self) -> list[AddedToken]:
        """All of them, in the order of their adding."""
        return [*self._tokens.values()]

    def require_unanimous(self) -> None:
        """Raise Inexact where declarations contradict each other."""
        if self.redeclared is not None:
            raise Inexact(f"added token {self.redeclared.content[:80]!r} has other flags in other files")

    def _with_ids(self, declared: Declared) -> list[AddedToken]:
        for token in declared.with_ids:
            self._check(token)
        by_id = {token.token_id: token for token in declared.with_ids}
        if not declared.complete:
            by_id |= {token.token_id: token for token in self._tokens.values()}
        return sorted(by_id.values(), key=lambda token: token.token_id)

    def _add(self, token: AddedToken) -> None:
        token = replace(token, normalized=token.is_normalized)
        if token.content and self._tokens.get(token.content) != token:
            self.additions.append(token)
            self._put(token)

    def _put(self, token: AddedToken) -> None:
        if not token.content:
            return
        self._check(token)
        before = self._tokens.get(token.content)
        if before and token not in (before, replace(before, special=True)):
            self.redeclared = token
        self._tokens[token.content] = token
        self._content_of[token.token_id] = token.content
        self._next_id = max(self._next_id, token.token_id + 1)

    def _id_of(self, content: str) -> int:
        before = self._tokens.get(content)
        known = before.token_id if before else self._ordinary_id(content)
        return self._next_id if known is None else known

    def _check(self, token: AddedToken) -> None:
        before, other = self._tokens.get(token.content), self._content_of.get(token.token_id)
        known = before.token_id if before else self._ordinary_id(token.content)
        if known is None and other is None and token.token_id in self._ordinary_ids:
            other = "a token of the vocabulary"
        if known not in (None, token.token_id):
            fault = f"has id {known}"
        elif other not in (None, token.content):
            fault = f"its id is that of {other[:80]!r}"
        else:
            return
        raise CheckpointError(
            f"added token {token.content[:80]!r} is declared with id {token.token_id}, but elsewhere in the files of "
            f"the tokenizer {fault}: they contradict each other; fetch all of them from one place"
        )
