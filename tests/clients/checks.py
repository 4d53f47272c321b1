"""What the programs of the clients share. Only the standard library: they run where the project is not installed."""

import inspect
import os
import sys
import traceback
from collections.abc import Callable

URL = os.environ.get("PENSTOCK_URL", "")
"""The address of the server, without /v1."""
MODEL = "clients"
"""The name under which it serves the model."""
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say what the weather is like.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
MESSAGES = [{"role": "system", "content": "import os"}, {"role": "user", "content": "def main():"}]


def run(checks: dict[str, object]) -> None:
    """Call every function of a module whose name begins with `check_`, print a line for each, and exit with 0 or 1."""
    failed = 0
    for name, check in checks.items():
        if not name.startswith("check_") or not callable(check):
            continue
        sentence = name.removeprefix("check_").replace("_", " ")
        failed += not _passes(check, sentence)
    sys.exit(1 if failed else 0)


def _passes(check: Callable[[], object], sentence: str) -> bool:
    try:
        check()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"FAILED {sentence}: {type(error).__name__}: {str(error)[:500]} ({where.name}, line {where.lineno})")
        print(traceback.format_exc(), file=sys.stderr)
        return False
    print(f"ok     {sentence}", flush=True)
    return True


def equal(have: object, want: object) -> None:
    """Raise AssertionError where two values differ."""
    if have != want:
        line = inspect.stack()[1].lineno
        raise AssertionError(f"line {line}: have {have!r}, want {want!r}")


def true(value: object, say: object = "") -> None:
    """Raise AssertionError where a value is not true."""
    if not value:
        raise AssertionError(f"line {inspect.stack()[1].lineno}: {say or value!r}")
