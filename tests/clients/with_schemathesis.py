"""schemathesis over /openapi.json: valid requests of all kinds find no 500. Run by tests/clients/run.py."""

import subprocess
import sys
import tempfile
from pathlib import Path

from checks import URL, run

EXAMPLES = 20
"""Drawn for each operation."""


def check_no_request_of_the_document_finds_an_error_of_the_server():
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "run", f"{URL}/openapi.json", "--mode", "positive", "--phases", "examples,fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--checks", "not_a_server_error,status_code_conformance"]
    command += ["--request-timeout", "60", "--seed", "1", "--generation-allow-x00", "false", "--exclude-path", "/live"]
    with tempfile.TemporaryDirectory() as folder:  # it keeps what it has found where it runs
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-1000:])
    print("\n".join(f"       {line}" for line in done.stdout.splitlines() if "generated" in line or "passed" in line))


if __name__ == "__main__":
    run(globals())
