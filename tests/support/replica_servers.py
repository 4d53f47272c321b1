"""Replicas of the bundled model on a cluster of Ray of their own, run by the command in another process."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.replicas.application import ROUTER

OPEN_SECONDS, END_SECONDS = 300.0, 60.0
RUNNING = "replicas: {} running; the application is running"
COMMAND = ["serve", "bundled", "--device", "cpu", "--host-memory", "600MB", "--port", "0"]
KINDS = (":Replica", ":Gate", "ProxyActor", "ServeController")


@dataclass(frozen=True)
class Replicas:
    """A command that runs, and where it listens."""

    command: subprocess.Popen[bytes]
    url: str
    log: Path

    def processes(self) -> list[int]:
        """The processes of the replicas."""
        return [one for one in _below(self.command.pid) if ":Replica" in _title(one)]

    def await_line(self, line: str, after: int = 0) -> None:
        """Wait until the command has said a line, behind as many bytes of its log."""
        ends = time.monotonic() + OPEN_SECONDS
        while line not in self.log.read_text()[after:]:
            assert self.command.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, f"{line!r} was not said: {self.log.read_text()}"
            time.sleep(0.05)


@contextlib.contextmanager
def replicas(count: int, *options: str, router: str = ROUTER) -> Iterator[Replicas]:
    """So many of them, ready to answer, behind a router of Serve."""
    arguments = [*COMMAND, "--replicas", str(count), *options]
    code = f"from pipeline import cli\nfrom pipeline.replicas import application\napplication.ROUTER = {router!r}\n"
    with _running(f"{code}raise SystemExit(cli.main({arguments!r}))", RUNNING.format(count)) as it:
        yield it


@contextlib.contextmanager
def one_process() -> Iterator[Replicas]:
    """The server without Ray."""
    with _running(f"from pipeline import cli\nraise SystemExit(cli.main({COMMAND!r}))", "ready: ") as it:
        yield it


@contextlib.contextmanager
def _running(code: str, ready: str) -> Iterator[Replicas]:
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "wb") as log:
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        command = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, env=environment)
        it = Replicas(command, "", Path(folder) / "log")
        try:
            it.await_line(ready)
            port = it.log.read_text().partition("listening on http://127.0.0.1:")[2].split()[0]
            yield Replicas(command, f"http://127.0.0.1:{port}", it.log)
        finally:
            if command.poll() is None:
                command.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(END_SECONDS)
            for process in [*_below(command.pid), command.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            command.wait()


def client(it: Replicas) -> httpx.AsyncClient:
    """A client that waits as long as a replica may take to come back."""
    return httpx.AsyncClient(base_url=it.url, timeout=60, trust_env=False, verify=False)


def cpu_seconds(it: Replicas) -> dict[str, float]:
    """What all processes of the command have computed, by their kind."""
    spent = dict.fromkeys((*KINDS, "others"), 0.0)
    for process in [it.command.pid, *_below(it.command.pid)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            kind = next((kind for kind in KINDS if kind in _title(process)), "others")
            spent[kind] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def _below(process: int) -> list[int]:
    """All processes that a process has started, and those have."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_below(int(child))]
    return found


def _title(process: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""
