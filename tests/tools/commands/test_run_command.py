"""`penstock run`: where the prompt comes from, what goes where, how it ends, and what is told of the answer."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli import main
from pipeline.generation.chunks import Chunk
from pipeline.tools.commands.answer import Answer
from pipeline.tools.trace.perfetto import read_trace

ROOT = Path(__file__).parent.parent.parent.parent
BUNDLED = ROOT / "pipeline" / "bundled"
SAMPLED = ["--temperature", "0.9", "--top-k", "50", "--top-p", "0.9", "--seed", "7", "--max-new-tokens", "5"]


def run(*arguments: str) -> int:
    """The exit status, also where it is raised."""
    try:
        return main(["run", str(BUNDLED), "--device", "cpu", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)


def test_text_goes_to_stdout_and_all_else_to_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a text, a file, or stdin alike; JSON has the same answer and its figures."""
    (tmp_path / "prompt").write_text("import os\n")
    assert run("--prompt", "import os\n", *SAMPLED) == 0
    told = capsys.readouterr()
    assert re.search(r"\ntokens     5: the first after \d+\.\d\d s, then [\d.e+]+ tokens/s\n", told.err)
    assert "\nended      cut at 5 tokens; --max-new-tokens N allows more\n" in told.err
    assert "plan       host" in told.err
    assert (
        run("--prompt-file", str(tmp_path / "prompt"), *SAMPLED, "--json", "--logprobs", "1", "--prompt-logprobs", "0")
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert told.out.removesuffix("\n") == record["text"].removesuffix("\n")
    assert (record["finish_reason"], len(record["token_ids"]), len(record["logprobs"])) == ("length", 5, 5)
    assert record["prompt_logprobs"][0] is None
    assert [len(one) for one in record["prompt_logprobs"][1:]] == [1] * (len(record["prompt_logprobs"]) - 1)
    assert 0 < record["first_token_seconds"] < record["seconds"]
    assert record["tokens_per_second"] > 0
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"import os\n")))
    assert run(*SAMPLED) == 0
    piped = capsys.readouterr()
    assert piped.out == told.out
    assert "prompt     continued as it is, as --raw TEXT says too" in piped.err, "the model has a template"
    assert run("--raw", "import os\n", *SAMPLED) == 0
    raw = capsys.readouterr()
    assert (raw.out, "continued as it is" in raw.err) == (told.out, False)
    assert run(*SAMPLED) == 1, "nothing is left of stdin"
    assert "need a prompt: --prompt TEXT" in capsys.readouterr().err


def test_a_chat_is_answered_by_a_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    template = ["--template", str(tmp_path / "chat.jinja")]
    assert run("--chat", "import os", "--system", "Python", *template, *SAMPLED, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert run("--prompt", "system: Python\nuser: import os\n", *SAMPLED, "--json") == 0
    assert record["token_ids"] != json.loads(capsys.readouterr().out)["token_ids"], "this one has a BOS token"
    (tmp_path / "chat.jinja").write_text("{{ bos_token }}" + (tmp_path / "chat.jinja").read_text())
    assert run("--chat", "import os", "--system", "Python", *template, *SAMPLED) == 0
    told = capsys.readouterr().out
    assert run("--prompt", "system: Python\nuser: import os\n", *SAMPLED) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_what_was_done_until_then(
    number: int,
    status: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take = Answer.take

    def take_three(answer: Answer, chunk: Chunk) -> None:
        take(answer, chunk)
        if len(answer.chunks) == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Answer, "take", take_three)
    arguments = ["--prompt", "x", "--max-new-tokens", "900", "--ignore-eos"]
    assert run(*arguments, "--json", "--trace", str(tmp_path / "trace")) == status
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert (record["finish_reason"], record["ended"][:18]) == ("interrupted", "interrupted after ")
    assert 3 <= len(record["token_ids"]) < 900
    assert "bound by" in told.err
    assert {span.actor for span in read_trace(tmp_path / "trace").spans} >= {"disk_reader", "compute_scheduler"}


def test_the_sentence_on_the_end_names_its_cause() -> None:
    def ended(reason: str, last_id: int, **arguments: object) -> str:
        return Answer([Chunk("", (1,), None), Chunk("", (last_id,), reason)], [1.0, 2.0], 0.0).ended((9,), arguments)

    assert ended("length", 1) == "cut at 2 tokens; --max-new-tokens N allows more"
    assert ended("stop", 9) == "by the model, with token 9; --ignore-eos goes on"
    assert ended("stop", 7, stop_token_ids=[7]) == "by token 7, one of --stop-token-ids"
    assert ended("stop", 9, stop=["end"], ignore_eos=True) == "before a text of --stop"


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (*BUNDLED.glob("*.safetensors*"), BUNDLED / "config.json"):
        shutil.copy(file, tmp_path)
    assert main(["run", str(tmp_path), "--prompt", "x"]) == 1
    assert capsys.readouterr().err.endswith("the folder has none; give token ids, as in run --prompt-ids 1,2,3\n")
    assert main(["run", str(tmp_path), "--prompt-ids", "1,2", "--max-new-tokens", "4"]) == 0
    assert re.fullmatch(r"(\d+ ){4}\n", capsys.readouterr().out)
    biases = ["--logit-bias", "9:100", "--logit-bias", "8:-2.5"]
    assert main(["run", str(tmp_path), "--prompt-ids", "1,2", "--max-new-tokens", "4", *biases]) == 0
    assert capsys.readouterr().out == "9 9 9 9 \n"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "one of the arguments --prompt --raw --prompt-file --prompt-ids --chat is required"),
        (["--prompt-file", "nowhere"], 1, "--prompt-file: nowhere: No such file or directory"),
        (["--prompt-file", "."], 1, "--prompt-file: .: Is a directory"),
        (["--prompt-file", "binary"], 1, "binary: need UTF-8 text, have byte 0xff at offset 1"),
        (["--prompt-file", "/dev/zero"], 1, "/dev/zero: need a prompt of at most"),
        (["--prompt", "-"], 1, "--prompt -: stdin is closed"),
        (["--chat", "-"], 1, "--chat -: stdin is closed"),
        (["--chat", "x", "--template", "nowhere"], 1, "--template: nowhere: No such file or directory"),
        (
            ["--prompt", "x", "--logit-bias", "5"],
            2,
            "argument --logit-bias: logit_bias: need at most 1024 different token ids, each with",
        ),
        (["--prompt", "x", "--system", "y"], 1, "--system: need --chat TEXT, have another prompt"),
        (["--prompt-ids", "1,x"], 1, "--prompt-ids: need token ids, as 1,2,3; have '1,x'"),
        (["--prompt", "x", "--logprobs", "1"], 1, "--logprobs: need --json"),
        (["--prompt", "x", "--top-p", "2"], 1, "top_p: need a number from 0.0 to 1.0; have 2.0"),
        (["--prompt", "x", "--set", "kv_tokens=0"], 1, "kv_tokens: need a whole number from 1"),
    ],
)
def test_what_can_never_work_is_one_line_before_anything_is_loaded(
    arguments: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("pipeline.tools.commands.text_files.MOST_BYTES", 1 << 10)
    (tmp_path / "binary").write_bytes(b"x\xff")
    assert run(*arguments) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(rf"penstock( run)?: {re.escape(says)}.*\n", told.err)


FULL = "penstock: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("redirected", "unbuffered", "status", "says"),
    [
        ("simulate --policy stage1 --layers 2 --json | true", "", 0, ""),
        ("simulate --policy stage1 --layers 2 --json | true", "1", 0, ""),
        ("--help | true", "", 0, ""),
        ("simulate --policy stage1 --layers 2 --json > /dev/full", "", 1, FULL),
        ("simulate --policy stage1 --layers 2 --json > /dev/full", "1", 1, FULL),
        ("--help > /dev/full", "", 1, FULL),
        ("--help >&-", "", 1, "penstock: stdout is closed; send what is printed to a file, or to /dev/null\n"),
        ("report nowhere -o x 2>&-", "", 1, ""),
        ("report nowhere -o x 2> /dev/full", "", 1, ""),
    ],
)
def test_a_closed_or_full_stdout_is_one_line_or_silence(
    redirected: str, unbuffered: str, status: int, says: str
) -> None:
    command = ["bash", "-c", f"set -o pipefail; {sys.executable} -m pipeline {redirected}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", says)


def test_a_reader_who_goes_away_ends_a_run_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each piece is written at once, so that nothing waits in a buffer to tell of it again."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    monkeypatch.setattr("sys.stderr", told := io.StringIO())
    assert run("--prompt", "x", "--max-new-tokens", "300") == 0
    assert "ended" not in told.getvalue()
    assert "Traceback" not in told.getvalue()
