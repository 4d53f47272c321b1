"""A conversation with an open model: its turns, what `/stats` tells of them, and the file that it is kept in."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.api import Model
from pipeline.errors import ConfigError, RequestError
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.system.loop_thread import LoopThread
from pipeline.tools.commands.answer import Answer
from pipeline.tools.commands.conversation import Conversation
from pipeline.tools.commands.remarks import counted
from pipeline.tools.commands.run_lines import closing_lines
from pipeline.tools.commands.run_prompt import stream_text
from pipeline.tools.commands.shown_answer import ShownAnswer

SCOPE = "penstock chat"
"""All turns share their KV blocks."""


@dataclass(slots=True)
class ChatTurn:
    """One question and its answer, as `/stats` tells of them."""

    answer: Answer
    prompt_tokens: int
    before: ModelStatistics
    after: ModelStatistics
    seconds: float


class ChatTurns:
    """What fails leaves the conversation as it was. The model lives on the thread; this is called on another."""

    def __init__(
        self,
        model: Model,
        thread: LoopThread,
        conversation: Conversation,
        arguments: dict[str, Any],
        template: dict[str, Any],
    ) -> None:
        self.conversation = conversation
        self._model, self._thread = model, thread
        self._arguments, self._template = arguments, template
        self._format = model.tool_format(**template)
        self._kept: list[dict[str, Any]] = []
        self._last: ChatTurn | None = None

    def greeting(self) -> str:
        """Say what is talked with, and how."""
        runtime = self._model.runtime
        return (
            f"{runtime.folder.name} · {runtime.config.family} · {runtime.context_tokens:,} tokens of context · "
            "/help lists what there is, Ctrl-C stops an answer, Ctrl-D ends"
        )

    def answer(self, messages: Sequence[dict[str, Any]]) -> None:
        """Answer these messages, and take both into the conversation; of an answer that is stopped what has come.

        Raises PenstockError, and KeyboardInterrupt where it was stopped.
        """
        earlier_ids = self.conversation.token_ids or None
        prompt_ids = self._thread.run(self._model.chat_ids(messages, earlier_ids=earlier_ids, **self._template))
        room = self._model.runtime.context_tokens - len(prompt_ids)
        if room < 1:
            raise RequestError(self._full(len(prompt_ids)))
        most = min(room, self._arguments.get("max_new_tokens", room))
        arguments = {**self._arguments, "max_new_tokens": most, "cache_scope": SCOPE}
        shown, answer, before = self._shown(messages), Answer(), self._model.statistics()
        try:
            self._thread.run(self._stream(prompt_ids, arguments, answer, shown))
        except KeyboardInterrupt:
            answer.interrupted = True
            if not answer.chunks:
                _say("stopped before the first token; the question is not kept")
                raise
            shown.end()
        seconds = time.perf_counter() - answer.started
        self._last = ChatTurn(answer, len(prompt_ids), before, self._model.statistics(), seconds)
        token_ids = [*prompt_ids, *answer.token_ids]
        self.conversation.answered(messages, shown.text, shown.reasoning, token_ids, stopped=answer.interrupted)
        if answer.interrupted:
            _say("stopped; what came stays in the conversation, /undo takes it back")
            raise KeyboardInterrupt
        if answer.finish_reason == "length":
            _say(self._full(len(token_ids)) if most == room else f"cut at --max-new-tokens {most}")

    def count(self, messages: Sequence[dict[str, Any]]) -> int:
        """How many tokens messages are. Raises RequestError where the template refuses them."""
        return len(self._thread.run(self._model.chat_ids(messages, **self._template)))

    def told(self) -> str:
        """What `/stats` says of the last turn. Raises RequestError where there was none."""
        if self._last is None:
            raise RequestError("there is no answer yet")
        turn, runtime = self._last, self._model.runtime
        found = turn.after.prefixes.hit_tokens - turn.before.prefixes.hit_tokens
        computed = turn.prompt_tokens - found
        all_tokens = turn.prompt_tokens + len(turn.answer.chunks)
        return (
            f"chat       {counted(len(self.conversation.messages), 'message')}, {all_tokens:,} of "
            f"{runtime.context_tokens:,} tokens of context\n"
            f"prompt     {turn.prompt_tokens:,} tokens: {found:,} were cached, {computed:,} computed\n"
            f"{turn.answer.lines(runtime.config.eos_ids, self._arguments)}"
            f"{closing_lines(turn.before, turn.after, turn.seconds)}"
        )

    def resume(self, path: Path, messages: list[dict[str, Any]], system: str | None, *, recompute: bool) -> None:
        """Go on with the messages of a session, and what it has cached of them. Raises RequestError."""
        self.conversation.messages, self._kept = messages, list(messages)
        said = "none of its tokens cached"
        if not recompute:
            try:
                session = self._thread.run(self._model.load_session(path, cache_scope=SCOPE))
            except RequestError as error:
                raise RequestError(f"{error}; --recompute takes its messages alone") from error
            self.conversation.token_ids = session.token_ids
            said = f"{session.cached_tokens:,} of {len(session.token_ids):,} tokens cached"
        if system is not None:
            self.conversation.system = system
        _say(f"{counted(len(messages), 'message')} of {path}, {said}")

    def keep(self, path: Path) -> None:
        """Write the session, unless nothing was said. Raises ConfigError and SpillError."""
        messages, token_ids = self.conversation.messages, self.conversation.token_ids
        if messages == self._kept:
            return
        saving = self._model.save_session(path, token_ids, messages=messages, cache_scope=SCOPE)
        try:
            saved = self._thread.run(saving)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{path}: cannot be written: {why}; the session is as it was before") from error
        _say(f"{counted(len(messages), 'message')} in {path}, {saved:,} of {len(token_ids):,} tokens cached")

    def _shown(self, messages: Sequence[dict[str, Any]]) -> ShownAnswer:
        if self._format is None or self._format.reasoning is None:
            return ShownAnswer(None)
        prompt = self._thread.run(self._model.chat_prompt(messages, **self._template))
        return ShownAnswer(self._format.parser(prompt=prompt).parted)

    async def _stream(
        self, prompt_ids: list[int], arguments: dict[str, Any], answer: Answer, shown: ShownAnswer
    ) -> None:
        marks = () if self._format is None else self._format.marks
        stream = self._model.stream(prompt_ids, shown_tokens=marks, **arguments)
        await stream_text(self._model, stream, answer, show=shown.show)

    def _full(self, tokens: int) -> str:
        have, most = self._model.runtime.context_tokens, self._model.runtime.config.max_positions
        larger = f", or start anew with --context-tokens N (at most {most})" if have < most else ""
        return (
            f"the context is full: the conversation has {tokens} tokens, of {have}; /undo takes the last turn back, "
            f"/reset begins anew{larger}"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
