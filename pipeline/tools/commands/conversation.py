"""The messages of a chat, and how they are kept in files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError, shown
from pipeline.system.small_files import open_plain_file
from pipeline.system.written_files import check_writable, writing

MOST_BYTES = 1 << 28
STOPPED = "stopped"
"""Marks an answer that its reader has stopped, which is in the history as far as it came."""


class Conversation:
    """Messages in OpenAI's form. `token_ids` are those of the last prompt and its answer, as far as they are known."""

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.token_ids: list[int] = []
        if system is not None:
            self.system = system

    @property
    def system(self) -> str | None:
        """What the model is told before all else."""
        return self.messages[0]["content"] if self._first else None

    @system.setter
    def system(self, text: str) -> None:
        self.messages[: self._first] = [{"role": "system", "content": text}]

    @property
    def _first(self) -> int:
        """How many messages stand before the first turn."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def asking(self, text: str) -> list[dict[str, Any]]:
        """The messages with a question behind them."""
        return [*self.messages, {"role": "user", "content": text}]

    def asking_again(self) -> list[dict[str, Any]]:
        """The messages without what answers the last question. Raises RequestError where there is none."""
        return self.messages[: self._last_question() + 1]

    def answered(
        self,
        messages: Sequence[dict[str, Any]],
        text: str,
        reasoning: str,
        token_ids: Sequence[int],
        *,
        stopped: bool,
    ) -> None:
        """Take these messages and their answer. Its reasoning stands apart: each template says what becomes of it."""
        more = {"reasoning_content": reasoning} if reasoning else {}
        mark = {STOPPED: True} if stopped else {}
        self.messages = [*messages, {"role": "assistant", "content": text, **more, **mark}]
        self.token_ids = list(token_ids)

    def undo(self) -> str:
        """Take the last question back, with its answer, and return it. Raises RequestError where there is none.

        Their tokens are forgotten, too: no session keeps what was taken back.
        """
        at = self._last_question()
        question = self.messages[at]["content"]
        del self.messages[at:]
        self.token_ids = []
        return str(question)

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        del self.messages[self._first :]
        self.token_ids = []

    def save(self, path: Path) -> None:
        """Write the messages as JSON. Raises ConfigError and OSError."""
        plain = [{name: value for name, value in one.items() if name != STOPPED} for one in self.messages]
        check_writable(path)
        with writing(path) as file:
            file.write((json.dumps(plain, ensure_ascii=False, indent=1) + "\n").encode(errors="backslashreplace"))

    def _last_question(self) -> int:
        for at in reversed(range(len(self.messages))):
            if self.messages[at]["role"] == "user":
                return at
        raise RequestError("there is no question yet")


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The messages of a JSON file: a list, or an object with a list under "messages". Raises RequestError."""
    need = 'a list of messages, as [{"role": "user", "content": "Hello"}]'
    try:
        with open_plain_file(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise RequestError(f"{path}: need at most {MOST_BYTES} bytes, have more")
        read = json.loads(content)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: need JSON with {need}; have {error}") from error
    messages = read.get("messages") if isinstance(read, dict) else read
    if not isinstance(messages, list) or not all(isinstance(one, dict) and one.get("role") for one in messages):
        raise RequestError(f"{path}: need {need}; have {shown(messages)}")
    return messages
