"""`penstock chat MODEL`, once torch is loaded: questions, and what else can be asked for between them."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pipeline.api import Model
from pipeline.errors import ConfigError, PenstockError, RequestError
from pipeline.generation.folder import check_chat
from pipeline.system.event_loop import signal_ends
from pipeline.system.loop_thread import LoopThread
from pipeline.tools.commands.chat_lines import ChatLines
from pipeline.tools.commands.chat_turns import ChatTurns
from pipeline.tools.commands.conversation import Conversation, read_messages
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import counted

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

    A terminal that goes away ends it as SIGTERM does: with the session written.

    Raises PenstockError where it cannot be opened; and what a turn raises where stdin is no terminal.
    """
    Progress().clear()
    check_chat(options.model, template.get("chat_template"))
    lines = ChatLines()
    with signal_ends(signal.SIGHUP), LoopThread("penstock chat") as thread, lines.history(options.history):
        progress = Progress()
        progress.say("opening the model")
        try:
            model = thread.run(_opened(options))
        finally:
            progress.clear()
        try:
            turns = ChatTurns(model, thread, Conversation(options.system), arguments, template)
            _say(turns.greeting())
            if messages is not None:
                turns.resume(options.session, messages, options.system, recompute=options.recompute)
            try:
                _hear_all(Talk(turns), lines)
            finally:
                if options.session is not None:
                    turns.keep(options.session)
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


class Talk:
    """What is said in a chat: a question, or a command that begins with /."""

    def __init__(self, turns: ChatTurns) -> None:
        self._turns = turns
        self._conversation = turns.conversation

    def hear(self, text: str) -> bool:
        """Answer, or do what a line that begins with / asks for. Returns whether the chat ends.

        Raises PenstockError, and KeyboardInterrupt where an answer was stopped.
        """
        if text.startswith("/"):
            name, _, rest = text.strip().partition(" ")
            order = self._orders.get(name)
            if order is None:
                raise RequestError(f"unknown command {name}; /help lists them, and a space before it sends it as text")
            return order(self, rest.strip()) is True
        if text.strip():
            self._turns.answer(self._conversation.asking(text))
        return False

    def _help(self, rest: str) -> None:
        _say(HELP)

    def _system(self, rest: str) -> None:
        if rest:
            self._turns.count(Conversation(rest).asking("Hello"))  # some templates refuse a system message
            self._conversation.system = rest
        _say(f"system: {self._conversation.system or 'nothing'}")

    def _undo(self, rest: str) -> None:
        _say(f"taken back: {self._conversation.undo()}")

    def _retry(self, rest: str) -> None:
        self._turns.answer(self._conversation.asking_again())

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        _say("all messages are forgotten")

    def _save(self, rest: str) -> None:
        path = _path("/save", rest)
        try:
            self._conversation.save(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; write somewhere else") from error
        _say(f"{counted(len(self._conversation.messages), 'message')} in {path}")

    def _load(self, rest: str) -> None:
        messages = read_messages(path := _path("/load", rest))
        if messages:
            tokens = self._turns.count(messages)
            _say(f"{counted(len(messages), 'message')} of {path}, {counted(tokens, 'token')}")
            if messages[-1]["role"] == "user":
                _say("the last is a question, which /retry answers")
        self._conversation.messages, self._conversation.token_ids = messages, []

    def _stats(self, rest: str) -> None:
        _say(self._turns.told())

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
    if not text or "\0" in text:
        raise RequestError(f"{name}: name a file")
    with contextlib.suppress(RuntimeError):  # no such user, or no home
        return Path(text).expanduser()
    return Path(text)
