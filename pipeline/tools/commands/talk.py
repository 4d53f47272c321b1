"""`penstock chat MODEL`, once torch is loaded: turns, and what else can be asked for between them."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.api import Model
from pipeline.errors import ConfigError, PenstockError, RequestError
from pipeline.generation.folder import check_chat
from pipeline.generation.model_statistics import ModelStatistics
from pipeline.system.loop_thread import LoopThread
from pipeline.tools.commands.answer import Answer
from pipeline.tools.commands.chat_lines import ChatLines
from pipeline.tools.commands.conversation import Conversation, read_messages
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import counted
from pipeline.tools.commands.run_lines import closing_lines
from pipeline.tools.commands.run_prompt import stream_text

SCOPE = "penstock chat"
"""All turns share their KV blocks."""
HELP = '''\
/help          this list
/system TEXT   tell the model TEXT before all else; without TEXT, say what it is told
/undo          take the last question and its answer back
/retry         answer the last question anew
/reset         forget all messages but the system message
/save FILE     write the messages as JSON, in OpenAI's form
/load FILE     go on with the messages of such a file
/stats         tokens, cached tokens, rates, and what binds
/exit          end the chat, as Ctrl-D does
"""            begins and ends a text of several lines
Ctrl-C         stops an answer, which stays as far as it came
Text that begins with / is sent where a space is put before it.'''


def talk(
    options: argparse.Namespace,
    arguments: dict[str, Any],
    template: dict[str, Any],
    messages: list[dict[str, Any]] | None,
) -> None:
    """Open the model and talk until there are no more lines; `messages` are those of a session that is there already.

    Raises PenstockError where it cannot be opened; and what a turn raises where stdin is no terminal.
    """
    Progress().clear()
    check_chat(options.model, template.get("chat_template"))
    lines = ChatLines()
    with LoopThread("penstock chat") as thread, lines.history(options.history):
        progress = Progress()
        progress.say("opening the model")
        try:
            model = thread.run(_opened(options))
        finally:
            progress.clear()
        try:
            chat = Talk(model, thread, Conversation(options.system), arguments, template)
            _say(chat.greeting())
            if messages is not None:
                chat.resume(options.session, messages, options.system, recompute=options.recompute)
            try:
                _hear_all(chat, lines)
            finally:
                if options.session is not None:
                    chat.keep(options.session)
        finally:
            thread.run(model.aclose())


def _hear_all(chat: "Talk", lines: ChatLines) -> None:
    for text in lines:
        try:
            if chat.hear(text):
                return
        except PenstockError as error:
            if not lines.from_terminal:
                raise
            _say(f"penstock: {error}")
        except KeyboardInterrupt:
            if not lines.from_terminal:
                raise


async def _opened(options: argparse.Namespace) -> Model:
    return await Model.open(options.model, **options.settings)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Turn:
    """One question and its answer, as `/stats` tells of them."""

    answer: Answer
    prompt_tokens: int
    before: ModelStatistics
    after: ModelStatistics
    seconds: float


class Talk:
    """A conversation with an open model. What fails leaves it as it was."""

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
        self._turn: Turn | None = None
        self._kept: list[dict[str, Any]] = []

    def greeting(self) -> str:
        """Say what is talked with, and how."""
        runtime = self._model.runtime
        return (
            f"{runtime.folder.name} · {runtime.config.family} · {runtime.context_tokens:,} tokens of context · "
            "/help lists what there is, Ctrl-C stops an answer, Ctrl-D ends"
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
        """Write the session, unless nothing was said. Raises ConfigError, OSError and SpillError."""
        messages, token_ids = self.conversation.messages, self.conversation.token_ids
        if messages == self._kept:
            return
        saving = self._model.save_session(path, token_ids, messages=messages, cache_scope=SCOPE)
        saved = self._thread.run(saving)
        _say(f"{counted(len(messages), 'message')} in {path}, {saved:,} of {len(token_ids):,} tokens cached")

    def hear(self, text: str) -> bool:
        """Answer, or do what a line that begins with / asks for. Returns whether the chat ends.

        Raises PenstockError, and KeyboardInterrupt where nothing had come when an answer was stopped.
        """
        if text.startswith("/"):
            name, _, rest = text.strip().partition(" ")
            order = self._orders.get(name)
            if order is None:
                raise RequestError(f"unknown command {name}; /help lists them, and a space before it sends it as text")
            return order(self, rest.strip()) is True
        if text.strip():
            self._answer(self.conversation.asking(text))
        return False

    def _answer(self, messages: Sequence[dict[str, Any]]) -> None:
        earlier_ids = self.conversation.token_ids or None
        prompt_ids = self._thread.run(self._model.chat_ids(messages, earlier_ids=earlier_ids, **self._template))
        room = self._model.runtime.context_tokens - len(prompt_ids)
        if room < 1:
            raise RequestError(self._full(len(prompt_ids)))
        most = min(room, self._arguments.get("max_new_tokens", room))
        arguments = {**self._arguments, "max_new_tokens": most, "cache_scope": SCOPE}
        answer, before = Answer(), self._model.statistics()
        try:
            self._thread.run(stream_text(self._model, self._model.stream(prompt_ids, **arguments), answer))
        except KeyboardInterrupt:
            answer.interrupted = True
            if not answer.chunks:
                _say("stopped before the first token; the question is not kept")
                raise
        seconds = time.perf_counter() - answer.started
        self._turn = Turn(answer, len(prompt_ids), before, self._model.statistics(), seconds)
        token_ids = [*prompt_ids, *answer.token_ids]
        self.conversation.answered(messages, answer.text, token_ids, stopped=answer.interrupted)
        if answer.interrupted:
            _say("stopped; what came stays in the conversation, /undo takes it back")
        elif answer.finish_reason == "length":
            _say(self._full(len(token_ids)) if most == room else f"cut at --max-new-tokens {most}")

    def _full(self, tokens: int) -> str:
        have, most = self._model.runtime.context_tokens, self._model.runtime.config.max_positions
        larger = f", or start anew with --context-tokens N (at most {most})" if have < most else ""
        return (
            f"the context is full: the conversation has {tokens} tokens, of {have}; /undo takes the last turn back, "
            f"/reset begins anew{larger}"
        )

    def _help(self, rest: str) -> None:
        _say(HELP)

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = rest
        _say(f"system: {self.conversation.system or 'nothing'}")

    def _undo(self, rest: str) -> None:
        _say(f"taken back: {self.conversation.undo()}")

    def _retry(self, rest: str) -> None:
        self._answer(self.conversation.asking_again())

    def _reset(self, rest: str) -> None:
        self.conversation.reset()
        _say("all messages are forgotten")

    def _save(self, rest: str) -> None:
        path = _path("/save", rest)
        try:
            self.conversation.save(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; write somewhere else") from error
        _say(f"{counted(len(self.conversation.messages), 'message')} in {path}")

    def _load(self, rest: str) -> None:
        messages = read_messages(path := _path("/load", rest))
        if messages:
            tokens = len(self._thread.run(self._model.chat_ids(messages, **self._template)))
            _say(f"{counted(len(messages), 'message')} of {path}, {counted(tokens, 'token')}")
            if messages[-1]["role"] == "user":
                _say("the last is a question, which /retry answers")
        self.conversation.messages, self.conversation.token_ids = messages, []

    def _stats(self, rest: str) -> None:
        if self._turn is None:
            raise RequestError("there is no answer yet")
        turn, answer = self._turn, self._turn.answer
        found = turn.after.prefixes.hit_tokens - turn.before.prefixes.hit_tokens
        have = self._model.runtime.context_tokens
        computed = turn.prompt_tokens - found
        _say(
            f"chat       {counted(len(self.conversation.messages), 'message')}, "
            f"{turn.prompt_tokens + len(answer.chunks):,} of {have:,} tokens of context\n"
            f"prompt     {turn.prompt_tokens:,} tokens: {found:,} were cached, {computed:,} computed\n"
            f"{answer.lines(self._model.runtime.config.eos_ids, self._arguments)}"
            f"{closing_lines(turn.before, turn.after, turn.seconds)}"
        )

    def _exit(self, rest: str) -> bool:
        return True

    _orders: ClassVar[dict[str, Callable[["Talk", str], bool | None]]] = {
        "/help": _help,
        "/system": _system,
        "/undo": _undo,
        "/retry": _retry,
        "/reset": _reset,
        "/save": _save,
        "/load": _load,
        "/stats": _stats,
        "/exit": _exit,
        "/quit": _exit,
    }


def _path(name: str, text: str) -> Path:
    if not text:
        raise RequestError(f"{name}: name a file")
    return Path(text).expanduser()
