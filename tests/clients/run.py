"""Real clients against `penstock serve`: each in an environment of its own, unchanged.

    make clients                                  all of them; some minutes, of which the most go into installing
    python tests/clients/run.py openai lm-eval    some; --keep DIR keeps the environments for the next time

Prints a line for each thing that was checked, and ends with 1 where one failed.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from checks import MODEL
from reference import write_lines, write_reference

from pipeline.system.hub_cache import BUNDLED

HERE = Path(__file__).parent
CLIENTS = {
    "openai": ("openai==3.57.0", "pydantic>=2"),
    "langchain": ("langchain-openai==1.7.4",),
    "litellm": ("litellm==1.110.2",),
    "lm-eval": ("lm-eval[api]==0.4.13",),
    "schemathesis": ("schemathesis==4.32.5",),
}
STARTS_SECONDS = 60
TEMPLATE = """{%- if tools %}{{ "# " }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.
{% endif %}
{%- for message in messages %}
    {{- message.content or "" }}
    {%- for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}
    {{- "\\n" }}
{%- endfor %}"""
"""Of the bundled model, with calls as Hermes writes them."""


def main() -> int:
    """Run the clients that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default all")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the environments there, and leave them")
    options = parser.parse_args()
    names = options.clients or list(CLIENTS)
    if unknown := [name for name in names if name not in CLIENTS]:
        parser.error(f"{unknown[0]}: need one of {', '.join(CLIENTS)}")
    with tempfile.TemporaryDirectory() as folder:
        where = options.keep or Path(folder) / "environments"
        programs = {name: environment(where / name, CLIENTS[name]) for name in names}
        model = Path(folder) / MODEL
        shutil.copytree(BUNDLED, model)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        lines, says = Path(folder) / "lines.jsonl", Path(folder) / "reference.json"
        write_lines(lines)
        write_reference(model, says)
        with serving(model) as url:
            more = {"PENSTOCK_URL": url, "PENSTOCK_REFERENCE": str(says), "PENSTOCK_LINES": str(lines)}
            failed = [name for name, python in programs.items() if not passes(name, python, more)]
    print(f"{len(names) - len(failed)} of {len(names)} clients pass{': not ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


def environment(folder: Path, requirements: tuple[str, ...]) -> Path:
    """The Python of an environment with these packages, which is made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(requirements)}", flush=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements]
        subprocess.run(install, check=True)
    return python


@contextlib.contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve a model in a process of its own; gives the address. The process must end with 0 when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline", "serve", str(model), "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "float32", "--served-name", MODEL]
    log = model.with_name("server.log")
    with open(log, "wb") as written, subprocess.Popen(command, cwd=HERE.parents[1], stderr=written) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(process, url)
            yield url
        finally:
            process.terminate()
            status = process.wait(30)
            if errors := [line for line in log.read_text().splitlines() if line.startswith(("Traceback", "ERROR"))]:
                print(f"the server has logged {len(errors)} errors:\n{log.read_text()[-4000:]}")
            if status not in (0, 143):
                raise SystemExit(f"the server ended with {status}")


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Return when the model is open. Raises SystemExit where the server ends, or takes too long."""
    deadline = time.monotonic() + STARTS_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if status(url) == "ready":
            return
        time.sleep(0.1)
    raise SystemExit(f"the server is not ready (status {process.poll()})")


def status(url: str) -> str:
    """What the server says of itself; nothing where it does not listen."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return str(json.load(answer)["status"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return ""


def passes(name: str, python: Path, more: dict[str, str]) -> bool:
    """Whether the program of a client ends with 0. What it prints goes to the terminal."""
    print(f"\n{name}: {' '.join(CLIENTS[name])}", flush=True)
    program = HERE / f"with_{name.replace('-', '_')}.py"
    started = time.monotonic()
    settings = {
        **os.environ,
        **more,
        "OPENAI_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    }
    status = subprocess.run([str(python), str(program)], env=settings, check=False).returncode
    print(f"       {time.monotonic() - started:.1f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
