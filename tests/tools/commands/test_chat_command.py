"""`penstock chat`: turn by turn, from a pipe and in a terminal; what fails leaves the conversation as it was."""

import contextlib
import io
import json
import os
import pty
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import Model
from pipeline.cli import main
from pipeline.generation.chunks import Chunk
from pipeline.generation.session_file import open_session
from pipeline.text.tool_calls.formats import find_format
from pipeline.tools.commands.answer import Answer
from pipeline.tools.commands.shown_answer import ShownAnswer

ROOT = Path(__file__).parent.parent.parent.parent
BUNDLED = ROOT / "pipeline" / "bundled"
PAUSE_SECONDS = 0.05
"""Python sees a signal that comes right before it waits for a key only with the next one."""
CHAT = ("chat", "bundled", "--device", "cpu", "--ignore-eos")


def chat(monkeypatch: pytest.MonkeyPatch, said: str, *options: str) -> int:
    """The exit status of a chat with these lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return main([*CHAT, "--max-new-tokens", "20", *options])


def test_a_pipe_is_a_conversation_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each turn goes on from all before, with what they have cached, and files hold the messages."""
    saved, again = tmp_path / "saved.json", tmp_path / "again.json"
    said = f'import os\n"""\ndef f(x):\n    y = 1"""\n/stats\n/save {saved}\n'
    then = f"/undo\n/undo\n/system # Python\nimport re\n/retry\n/save {again}\n/exit\nnot heard\n"
    assert chat(monkeypatch, said + then) == 0
    told = capsys.readouterr()
    messages = json.loads(saved.read_text())
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "def f(x):\n    y = 1"
    assert re.search(r"\nprompt     \d+ tokens: 16 were cached, \d+ computed\n", told.err)
    answers = [one["content"] for one in messages if one["role"] == "assistant"]
    third = json.loads(again.read_text())
    assert [one["role"] for one in third] == ["system", "user", "assistant"]
    assert (third[0]["content"], third[1]["content"]) == ("# Python", "import re")
    answers += [third[2]["content"]] * 2
    assert told.out == "".join(one if one.endswith("\n") else one + "\n" for one in answers)
    assert chat(monkeypatch, f"/load {saved}\n/retry\n/save {again}\n") == 0
    assert json.loads(again.read_text()) == messages, "the same question has the same answer"


def test_what_fails_changes_nothing_and_ends_a_pipe_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "odd.json").write_text('[{"content": "no role"}]')
    os.mkfifo(tmp_path / "fifo")
    refuses = ("--template", str(ROOT / "tests/support/chat_templates/gemma2.jinja"))
    for said, says, *options in (
        ("/unknown\n", "unknown command /unknown; /help lists them"),
        ("/undo\n", "there is no question yet"),
        ("/load\n", "/load: name a file"),
        (f"/load {tmp_path}/odd.json\n", "odd.json: need a list of messages"),
        (f"/load {tmp_path}/none.json\n", "none.json: No such file"),
        (f"x\n/save {tmp_path}/no/file\n", "there is no folder"),
        (f"/load {tmp_path}/fifo\n", "is not a regular file"),
        ("/save ~nobody.of.this.name/x\n", "there is no folder"),
        ("/save a\0b\n", "/save: name a file"),
        ("/system Be brief.\n", "There is no system role", *refuses),
        ("x = 1\n" + "y " * 2000 + "\n", "the context is full: the conversation has "),
    ):
        assert chat(monkeypatch, said, *options) == 1
        assert says in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert main([*CHAT]) == 1
    assert "stdin is closed" in capsys.readouterr().err
    shutil.copytree(BUNDLED, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    monkeypatch.setattr(Model, "open", None)
    monkeypatch.setattr("sys.stdin", io.StringIO("x"))
    assert main(["chat", str(tmp_path)]) == 1
    assert "config.json: is missing" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "plain")]) == 1
    assert "need a chat template" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "kept"), [(signal.SIGINT, 4), (signal.SIGHUP, 2)])
def test_a_signal_ends_a_pipe_and_writes_its_session(
    number: int, kept: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What has come of an answer is kept where its reader stopped it: with Ctrl-C."""
    take, session, answers = Answer.take, tmp_path / "chat.session", []

    def take_three(answer: Answer, chunk: Chunk) -> None:
        take(answer, chunk)
        answers.extend([answer] * (answer not in answers))
        if len(answers) == 2 and len(answer.chunks) == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Answer, "take", take_three)
    try:
        status = chat(monkeypatch, "import os\nimport re\nnot heard\n", "--session", str(session))
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 128 + number
    with contextlib.closing(open_session(session)) as file:
        messages = file.header.messages
    assert [one["content"] for one in messages[::2]] == ["import os", "import re"][: kept // 2]
    assert [one.get("stopped") for one in messages] == [None, None, None, True][:kept]


def test_a_session_that_the_disk_has_no_room_for_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    session = tmp_path / "chat.session"
    assert chat(monkeypatch, "import os\n", "--session", str(session)) == 0
    written = session.stat().st_ino
    assert chat(monkeypatch, "", "--session", str(session)) == 0
    assert session.stat().st_ino == written, "nothing was said, so nothing is written"
    before, (soft, hard) = session.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        assert chat(monkeypatch, "import re\n", "--session", str(session)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{session}: cannot be written: " in capsys.readouterr().err
    assert session.read_bytes() == before
    assert os.listdir(tmp_path) == ["chat.session"]


def test_no_session_keeps_the_tokens_of_what_was_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = tmp_path / "chat.session"
    for said, messages in (("import os\nimport re\n/undo\n", 2), ("x\n/reset\n", 0)):
        assert chat(monkeypatch, said, "--session", str(session)) == 0
        with contextlib.closing(open_session(session)) as file:
            assert (len(file.header.messages), file.header.token_ids) == (messages, [])


def test_reasoning_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It goes to stderr, and to templates under its name; here the template begins it, and the model goes on."""
    saved, template = tmp_path / "saved.json", tmp_path / "chat.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<think>\n"
        "{% else %}</think>{% endif %}"
    )
    assert chat(monkeypatch, f"import os\n/save {saved}\n", "--template", str(template)) == 0
    told, answer = capsys.readouterr(), json.loads(saved.read_text())[1]
    assert answer["content"] == ""
    assert answer["reasoning_content"] in told.err
    assert told.out.strip() == ""
    shown = ShownAnswer(find_format(template.read_text()).parser(prompt="<think>\n").parted)  # type: ignore[union-attr]
    for text, reason in (("so </th", None), ("ink>\n\nyes", None), ("!", "stop")):
        shown.show(Chunk(text, (1,), reason))
    assert (shown.reasoning, shown.text, capsys.readouterr().out) == ("so", "yes!", "yes!")


def test_a_session_goes_on_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the same tokens as without one, which are cached; and from messages alone, where the model is another."""
    session, saved = tmp_path / "chat.session", tmp_path / "saved.json"
    drawn = ("--temperature", "1.3", "--seed", "5", "--max-new-tokens", "40")
    assert chat(monkeypatch, f"import os\ndef f(x):\n/save {saved}\n", *drawn) == 0
    expected = json.loads(saved.read_text())
    assert chat(monkeypatch, "import os\n", "--session", str(session), *drawn) == 0
    assert f"2 messages in {session}, 32 of 44 tokens cached" in capsys.readouterr().err
    assert chat(monkeypatch, f"def f(x):\n/stats\n/save {saved}\n", "--session", str(session), *drawn) == 0
    told = capsys.readouterr().err
    assert f"2 messages of {session}, 32 of 44 tokens cached" in told
    assert "32 were cached" in told
    assert json.loads(saved.read_text()) == expected
    other = ("chat", "bundled-int4", "--device", "cpu", "--session", str(session))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/save {saved}\n"))
    assert main(other) == 1
    assert "it was written with another model" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/save {saved}\n"))
    assert main([*other, "--recompute"]) == 0
    assert json.loads(saved.read_text()) == expected


class Terminal:
    """A program in a terminal of its own, of which all that it shows is kept."""

    def __init__(self, *arguments: str) -> None:
        self._here, self._there = pty.openpty()
        name = os.ttyname(self._there)
        command = shlex.join([sys.executable, "-m", "pipeline", *arguments])
        environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)}
        # What opens a terminal in a session without one gets its signals.
        script = f"exec {command} <{name} >{name} 2>&1"
        self.process = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True)
        self.shown = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown from now on, up to `text`."""
        ends = time.monotonic() + seconds
        while text not in self.shown:
            ready = select.select([self._here], [], [], max(0, ends - time.monotonic()))[0]
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._here, 1 << 16).decode().replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._here, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)
        os.close(self._there)


def test_in_a_terminal_lines_are_edited_and_ctrl_c_stops_the_answer_alone(tmp_path: Path) -> None:
    terminal = Terminal(*CHAT, "--history", str(tmp_path / "history"))
    try:
        terminal.until(">>> ")
        terminal.type("imporx\x7ft os\r")
        terminal.until("import ")
        terminal.until("\n")
        terminal.until("\n")
        terminal.type("\x03")
        terminal.until("stopped; what came stays")
        terminal.until(">>> ")
        terminal.type("/stats\r")
        assert "interrupted after" in terminal.until("bound by")
        terminal.until(">>> ")
        terminal.type("\x10\x10\r")
        terminal.until("import os\n")
        terminal.until("\n")
        terminal.type("\x03")
        terminal.until("stopped; what came stays")
        terminal.until(">>> ")
        terminal.type("/nothing\r")
        terminal.until("unknown command")
        terminal.until(">>> ")
        terminal.type("half a line")
        terminal.until("half a line")
        time.sleep(PAUSE_SECONDS)
        terminal.type("\x03")
        terminal.until("Ctrl-C once more")
        terminal.until(">>> ")
        time.sleep(PAUSE_SECONDS)
        terminal.type("\x03")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
    assert (tmp_path / "history").read_text().split("\n")[:2] == ["import os", "/stats"]
