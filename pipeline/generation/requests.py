"""From the arguments of a call to its sequences: everything is checked here, before any work."""

import asyncio
import dataclasses
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Settings
from pipeline.errors import RequestError, shown
from pipeline.generation.argument_values import LONGEST_SCOPE, MOST_PRIORITY, MOST_SAMPLES, is_whole, plain
from pipeline.generation.grammar import Grammars, require_package
from pipeline.generation.model_runtime import ModelRuntime
from pipeline.generation.parameters import FORCED_FIELDS, SamplingArguments, SamplingParameters
from pipeline.generation.response_format import read_response_format
from pipeline.generation.sequence import RunningSequence
from pipeline.state.prefix_cache import COMMON_SCOPE, digest_prompt, named_scope, private_scope
from pipeline.system.threads import give_way
from pipeline.text.chat import Chat, ChatOptions, ChatVariables
from pipeline.text.prompts import SLICE_TOKENS, id_slices, known_length
from pipeline.text.tokenizer import Tokenizer
from pipeline.text.tokenizing import Tokenizing

SHORTEST_SLEEP_SECONDS = 0.001
"""What the timers of uvloop count in: less would be one turn of the loop, of which a pass takes a hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How a call is served, beside how its tokens are chosen. Raises RequestError for a value that can never work.

    Attributes:
        n: samples of the prompt, which is computed once for all of them; sample i draws with `seed` + i. None is one.
        priority: of calls that wait, the one with the lowest number is served first, and of equals the oldest. What
            runs already is not interrupted.
        cache_scope: calls that give the same name reuse each other's KV blocks, of prompts and of answers, where their
            tokens begin alike. How fast a call is answered tells its caller what others in the scope have sent, so
            name it after callers that may know. None shares with no call; or, with `Config.share_prefixes`, with all
            other calls that give none. A named scope stays apart even then.
        response_format: what the answer must look like, as OpenAI's clients say it: {"type": "json_object"}, {"type":
            "json_schema", "json_schema": {"schema": ...}}, or also {"type": "regex", "regex": ...} and {"type":
            "grammar", "grammar": ...} in llguidance's notation, which the extra `grammar` installs. The answer ends
            where nothing may follow. An answer within reasoning that the prompt has opened keeps to it behind that.
        shown_tokens: names of special tokens that the answer's text shows, such as "[TOOL_CALLS]": others have no text.
            Names that no special token has do not matter.
    """

    n: int | None = None
    priority: int = 0
    cache_scope: str | None = None
    shown_tokens: tuple[str, ...] = ()
    response_format: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.n is not None and not is_whole(self.n, 1, MOST_SAMPLES):
            raise self._error("n", f"a whole number from 1 to {MOST_SAMPLES}")
        if not is_whole(self.priority, -MOST_PRIORITY, MOST_PRIORITY):
            raise self._error("priority", f"a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}")
        scope = self.cache_scope
        if scope is not None and not (isinstance(scope, str) and 1 <= len(scope) <= LONGEST_SCOPE):
            raise self._error("cache_scope", f"a name of 1 to {LONGEST_SCOPE} characters, or None")
        shown_tokens = self.shown_tokens
        if not isinstance(shown_tokens, tuple) or not all(isinstance(name, str) for name in shown_tokens):
            raise self._error("shown_tokens", "a list of names of special tokens")

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.n or 1

    def scope(self, share_prefixes: bool) -> bytes | None:
        """The scope in which this call shares KV blocks; None where no other call could use them."""
        if self.cache_scope is not None:
            return named_scope(self.cache_scope)
        if share_prefixes:
            return COMMON_SCOPE
        return private_scope() if self.samples > 1 else None

    def _error(self, name: str, need: str) -> RequestError:
        return RequestError(f"{name}: need {need}; have {shown(getattr(self, name))}")


class CallArguments(SamplingArguments, total=False):
    """What a call may give beside its prompt and `n`, each with its type; None counts as not given."""

    priority: int | None
    cache_scope: str | None
    shown_tokens: Sequence[str] | None
    response_format: Mapping[str, Any] | None


class ChatArguments(CallArguments, ChatVariables, total=False):
    """What a chat may give beside its messages and `n`."""


OPTIONS = tuple(field.name for field in dataclasses.fields(CallOptions))
CHAT_OPTIONS = tuple(field.name for field in dataclasses.fields(ChatOptions))
ARGUMENTS = frozenset((*SamplingArguments.__annotations__, *OPTIONS))
"""The names of all arguments of a call but its prompt."""


class Call:
    """One call: its arguments are checked, and of its prompt what takes no time. Its sequences are made later.

    `arguments` are those of sampling and of `CallOptions`. Raises RequestError where they, or the prompt, can never be
    served. A text is measured by its bytes: it has at least as many tokens as it holds the longest token. A `Chat`
    becomes a text when its sequences are made.
    """

    def __init__(
        self,
        runtime: ModelRuntime,
        tokenizer: Tokenizer | None,
        grammars: Grammars,
        defaults: Mapping[str, object],
        prompt: object,
        arguments: Mapping[str, Any],
    ) -> None:
        self._runtime, self._tokenizer, self._grammars = runtime, tokenizer, grammars
        if misplaced := Settings.__annotations__.keys() & arguments.keys():
            raise RequestError(f"{min(misplaced)}: is a setting of Model.open; give it there")
        self._options = CallOptions(
            **{name: plain(arguments[name]) for name in OPTIONS if arguments.get(name) is not None}
        )
        chosen = {name: value for name, value in arguments.items() if name not in OPTIONS}
        also_known = OPTIONS + CHAT_OPTIONS * isinstance(prompt, Chat)
        self._parameters = SamplingParameters.from_arguments(defaults, chosen, also_known)
        self._grammar = read_response_format(self._options.response_format)
        self._check_arguments()
        self._text = prompt if isinstance(prompt, str | Chat) else None
        self._ids = array("i")  # millions in a list would delay all tasks at each garbage collection
        self._later_ids: Iterator[list[int]] = iter(())
        self._known_length = 0
        self._plain = type(prompt) in (list, tuple, range)  # taking their ids runs no code of the caller's
        if isinstance(prompt, Chat):
            return  # only its template knows what becomes of it
        if not isinstance(prompt, str):
            self._known_length = known_length(prompt)
            self._check_room(self._known_length)
            self._later_ids = id_slices(prompt, runtime.config.vocabulary_size)
            self._ids.extend(next(self._later_ids, ()))
            self._check_room(len(self._ids), at_least=True)
        elif tokenizer is None:
            raise RequestError(
                "prompt: text needs a tokenizer, and the folder has none; give token ids, as in run --prompt-ids 1,2,3"
            )
        else:
            self._check_room(tokenizer.fewest_tokens(prompt), at_least=True)
        if not self._ids and (tokenizer is None or self._text is None or not (self._text or tokenizer.encode(""))):
            raise _no_token()

    async def sequences(self, tokenizing: Tokenizing) -> list[RunningSequence]:
        """One sequence for each sample that the call asks for. A text, and what is long, takes a thread meanwhile.

        A prompt of ids must not change before this has returned. Raises RequestError for what is found only now.
        """
        sequences = await self._plain_sequences(tokenizing)
        if self._grammar is not None and self._tokenizer is not None:
            thought = self._text.open_thought(self._tokenizer, self._ids) if isinstance(self._text, Chat) else None
            states = await self._grammars.states(self._tokenizer, self._grammar, thought, len(sequences))
            for sequence, state in zip(sequences, states, strict=True):
                sequence.sampler.keep_to(state)
        return sequences

    async def _plain_sequences(self, tokenizing: Tokenizing) -> list[RunningSequence]:
        if self._text is not None:
            length = self._text.characters if isinstance(self._text, Chat) else len(self._text)
            return await tokenizing.run(length, self._make_sequences)
        if not self._plain:
            for part in self._later_ids:
                self._take(part)
                await asyncio.sleep(SHORTEST_SLEEP_SECONDS)
        if (length := max(self._known_length, len(self._ids))) > SLICE_TOKENS:
            return await tokenizing.run(length, self._make_sequences)
        return self._make_sequences()

    def _make_sequences(self) -> list[RunningSequence]:
        if self._text is not None and self._tokenizer is not None:
            self._ids = self._ids_of_text(self._text, self._tokenizer)
            self._check_room(len(self._ids))
            if not self._ids:
                raise _no_token()
        for part in self._later_ids:
            self._take(part)
            give_way()
        scope = self._options.scope(self._runtime.settings.share_prefixes)
        sequences: list[RunningSequence] = []
        for _ in range(self._options.samples):
            sequence = RunningSequence(
                self._ids,
                self._parameters,
                frozenset(self._parameters.stop_token_ids),
                self._tokenizer.detokenizer(self._ids, self._options.shown_tokens) if self._tokenizer else None,
                self._runtime.config.vocabulary_size,
                scope=scope,
                priority=self._options.priority,
                earlier=sequences,
                choose_rope_length=self._runtime.config.rope_length,
            )
            digest_prompt(sequence, sequences)
            sequences.append(sequence)
        return sequences

    def _ids_of_text(self, text: str | Chat, tokenizer: Tokenizer) -> "array[int]":
        if isinstance(text, str):
            return tokenizer.prompt_ids(text)
        return text.ids(tokenizer, lambda rendered: self._check_room(tokenizer.fewest_tokens(rendered), at_least=True))

    def _take(self, part: list[int]) -> None:
        self._ids.extend(part)
        self._check_room(len(self._ids), at_least=True)

    def _check_arguments(self) -> None:
        config = self._runtime.config
        self._runtime.admission.check(self._parameters)
        self._parameters = self._parameters.fitted(config.vocabulary_size, config.eos_ids)
        if self._parameters.stop and self._tokenizer is None:
            raise RequestError("stop: stop strings need a tokenizer, and the folder has none; use stop_token_ids")
        if self._grammar is None:
            return
        if self._tokenizer is None:
            raise RequestError("response_format: needs a tokenizer, and the folder has none; leave it out")
        if forced := [name for name in FORCED_FIELDS if getattr(self._parameters, name)]:
            raise RequestError(f"response_format: cannot be kept where {forced[0]} says what comes; leave one out")
        require_package()

    def _check_room(self, prompt_tokens: int, *, at_least: bool = False) -> None:
        """Raises RequestError, with what helps for sure; not all is known of a prompt of `at_least` so many tokens."""
        new_tokens, have = self._parameters.max_new_tokens, self._runtime.context_tokens
        if (need := prompt_tokens + new_tokens) <= have:
            return
        most, kv_tokens = self._runtime.config.max_positions, self._runtime.settings.kv_tokens
        ways = [f"shorten the prompt to {have - new_tokens} tokens"] if new_tokens < have else []
        if prompt_tokens < have and not at_least:
            ways.append(f"lower max_new_tokens to {have - prompt_tokens}")
        if need <= most and not at_least:
            more = f" and kv_tokens={need}" if kv_tokens is not None and kv_tokens < need else ""
            ways.append(f"open the model with context_tokens={need}{more}")
        raise RequestError(
            f"need room for {'at least ' * at_least}{prompt_tokens} prompt and {new_tokens} new tokens, have {have}: "
            f"{', or '.join(ways) or f'ask for at most {have} of both'}{f'; it was made for {most}' * (need > most)}"
        )


def _no_token() -> RequestError:
    return RequestError("prompt: need at least one token, have none")
