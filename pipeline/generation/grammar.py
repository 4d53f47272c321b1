"""Grammars keep answers to what was asked for: which tokens may come next, by the package llguidance.

Shape letter: V vocabulary.
"""

import asyncio
import contextlib
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Busy, RequestError, for_one_caller
from pipeline.generation.response_format import GrammarSource
from pipeline.text.tokenizer import Tokenizer
from pipeline.text.tool_calls.forced import JSON_SPACE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_KEPT = 64
"""Compiled grammars: some hundred kilobytes each, in no plan."""
MOST_COMPILING = 32
COMPILED_AT_ONCE = 2
LONGEST_COMPILING_SECONDS = 10
LIMITS: Any = {"max_lexer_states": 50_000, "max_items_in_row": 500, "step_lexer_fuel": 200_000, "verbose_errors": False}
"""What llguidance refuses to go on with: some 100 MB for a sample, and 50 ms for a token, in which the event loop may
stand. An object may have about 120 properties that can be left out."""
INSIDE = "\x02"
"""A character that no token has beside others: behind it text is inside of a text."""
LONGEST_SPELLED_BYTES = 32
SPACED = "/[ \\n\\r\\t]*/"


def require_package() -> None:
    """Raise RequestError where llguidance is not installed."""
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "response_format: need llguidance, which is not installed: pip install llguidance"
        ) from error


class GrammarState:
    """Where one sample stands in its grammar: the first mask makes a copy of what was compiled."""

    def __init__(self, compiled: Any, vocabulary_size: int) -> None:
        self._compiled, self._size = compiled, vocabulary_size
        self._matcher: Any = None
        self.complete = False

    def allowed(self) -> "NDArray[np.uint8]":
        """A bit for each token that may come next, from the lowest on. Raises RequestError where that is too much.

        It may take some milliseconds, in which other threads can run.
        """
        if self._matcher is None:
            self._matcher = self._compiled.deep_copy()
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return allowed[: -(-self._size // 8)]

    def took(self, token_id: int) -> None:
        """Take note of the token that came; `complete` says then whether nothing may follow."""
        self._matcher.consume_token(token_id)
        self._check()
        self.complete = self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"response_format: the grammar cannot be followed: {_first_line(self._matcher)}")


class Grammars:
    """Compiles the grammars of a model's calls, each on a thread of its own, and keeps the last ones.

    A thread cannot be stopped: a call waits so long for it and then fails, and there are only so many.
    """

    def __init__(self, vocabulary_size: int, eos_ids: Sequence[int]) -> None:
        self._size = vocabulary_size
        self._eos_ids = [*eos_ids]
        self._kept: OrderedDict[tuple[GrammarSource, str | None], Future[Any]] = OrderedDict()
        self._turns = threading.Semaphore(COMPILED_AT_ONCE)
        self._bridge: Any = None
        self._bridging = threading.Lock()

    async def prepare(self, tokenizer: Tokenizer) -> None:
        """Make what the first grammar needs, where llguidance is installed; the first call hears of what fails."""
        with contextlib.suppress(RequestError):
            await asyncio.wrap_future(self._begin(functools.partial(self._bridged, tokenizer)))

    async def states(
        self, tokenizer: Tokenizer, source: GrammarSource, thought: str | None, count: int
    ) -> list[GrammarState]:
        """Compile a grammar, and return its beginning for each of `count` samples.

        With `thought` the answer begins with any text up to this mark, and the grammar is about what follows. Raises
        RequestError for a grammar that is malformed, not supported or too much, Busy where too many are compiled.
        """
        key = source, thought
        if (future := self._kept.get(key)) is None:
            future = self._kept[key] = self._begin(functools.partial(self._compile, tokenizer, source, thought))
        self._kept.move_to_end(key)
        try:
            async with asyncio.timeout(LONGEST_COMPILING_SECONDS):
                compiled = await asyncio.wrap_future(future)
        except TimeoutError:
            what = f"compiling the grammar takes more than {LONGEST_COMPILING_SECONDS} seconds; ask for less"
            raise RequestError(f"response_format: {what}") from None
        except RequestError as error:
            self._kept.pop(key, None)
            raise for_one_caller(error) from None
        return [GrammarState(compiled, self._size) for _ in range(count)]

    def _begin(self, compile_one: Callable[[], Any]) -> "Future[Any]":
        compiled = [key for key, future in self._kept.items() if future.done()]
        for key in compiled[: max(0, len(self._kept) + 1 - MOST_KEPT)]:
            del self._kept[key]
        if (compiling := len(self._kept) - len(compiled)) >= MOST_COMPILING:
            raise Busy(f"busy: {compiling} grammars are being compiled: call again when some have been")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a caller that is cancelled leaves it alone
        threading.Thread(target=self._run, args=(compile_one, future), name="penstock-grammar", daemon=True).start()
        return future

    def _run(self, compile_one: Callable[[], Any], future: "Future[Any]") -> None:
        with self._turns:
            try:
                future.set_result(compile_one())
            except RequestError as error:
                future.set_exception(error)
            except BaseException as error:  # a panic of the package is no Exception
                failure = RequestError(f"response_format: compiling failed: {type(error).__name__}: {error}")
                future.set_exception(failure)

    def _compile(self, tokenizer: Tokenizer, source: GrammarSource, thought: str | None) -> Any:
        """The matcher at the beginning, which has been asked for its first tokens: some are too much only then."""
        import llguidance

        limits = llguidance.LLParserLimits(**LIMITS)
        grammar = _grammar(source, thought, tokenizer)
        matcher = llguidance.LLMatcher(self._bridged(tokenizer), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError(f"response_format: {_first_line(matcher)}")
        return matcher

    def _bridged(self, tokenizer: Tokenizer) -> Any:
        """llguidance's tokenizer, which is made once: no thread can run for 0.1 to 0.3 s of it."""
        import llguidance

        with self._bridging:
            if self._bridge is None:
                bridge = _Bridge(tokenizer, self._size, self._eos_ids)
                self._bridge = llguidance.LLTokenizer(llguidance.TokenizerWrapper(bridge), eos_token=bridge.eos_ids)
        return self._bridge


class _Bridge:
    """A tokenizer as llguidance wants it: the bytes of each token, and how a text that must come is cut into tokens."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocabulary_size)]
        self.eos_ids = [*eos_ids]
        if not eos_ids:  # it must have one: another token, that no model has
            self.eos_ids = [vocabulary_size]
            self.tokens.append(b"<|end|>")
        self.eos_token_id = self.eos_ids[0]
        self._special = {*tokenizer.special_ids, *self.eos_ids}
        self.special_token_ids = sorted(self._special)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of tokens that spell the text, as llguidance takes it for granted: those of the checkpoint's tokenizer.

        It may begin every text with a space: then those inside of a text. Where it writes something else, a special
        token or a composed letter, the longest tokens do.
        """
        wanted = text if isinstance(text, bytes) else text.encode()
        for before in ("", INSIDE):
            begun, ids = self._ids(before), self._ids(before + wanted.decode(errors="replace"))
            inside = ids[len(begun) :]
            spelled = b"".join(self.tokens[token_id] for token_id in inside)
            if (ids[: len(begun)], spelled) == (begun, wanted) and self._special.isdisjoint(inside):
                return inside
        return [*self._longest(wanted)]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.checkpoint_ids(text, add_special_tokens=False).tolist()

    def _longest(self, text: bytes) -> Iterator[int]:
        begin = 0
        while begin < len(text):
            parts = (text[begin : begin + size] for size in range(LONGEST_SPELLED_BYTES, 0, -1))
            if (token := next((part for part in parts if part in self._spelling), None)) is None:
                return  # no token has this byte: llguidance says that the grammar cannot be followed
            yield self._spelling[token]
            begin += len(token)

    @functools.cached_property
    def _spelling(self) -> dict[bytes, int]:
        ids = (token_id for token_id in range(len(self.tokens)) if token_id not in self._special)
        return {self.tokens[token_id]: token_id for token_id in ids}


def _grammar(source: GrammarSource, thought: str | None, tokenizer: Tokenizer) -> str:
    """The grammar as llguidance reads it."""
    import llguidance

    ids = tokenizer.special_tokens
    if source.kind == "json_schema":
        overrides: Any = {"lenient": False, "whitespace_pattern": JSON_SPACE}
        [answer] = json.loads(llguidance.LLMatcher.grammar_from_json_schema(source.text, overrides=overrides))[
            "grammars"
        ]
    elif source.kind == "regex":
        [answer] = json.loads(llguidance.LLMatcher.grammar_from_regex(source.text))["grammars"]
    else:
        marks = (f"{rule}: {_mark(text, ids)}" for rule, text in source.marks)
        answer = {"lark_grammar": "\n".join([source.text, *marks])}
    grammars = [{**answer, "name": "answer"}]
    if thought is not None:
        end = _mark(thought, ids)
        lazy = "[lazy]" if end.startswith('"') else ""
        rules = ["start: thought SPACE @answer", f"thought{lazy}: TEXT {end}"]
        grammars.insert(0, {"lark_grammar": "\n".join([*rules, "TEXT: /(.|\\n)*/", f"SPACE: {SPACED}"])})
    return json.dumps({"grammars": grammars})


def _mark(text: str, ids: Mapping[str, int]) -> str:
    """A text in a grammar: the special token of this name, if there is one."""
    return f"<[{ids[text]}]>" if text in ids else json.dumps(text)


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n")[0][:500]
