#!/bin/bash
# ray 2.60.0: ray.init() puts its own handler of SIGTERM in the place of the program's, without a word.
#
# A program that drains on SIGTERM sets its handler when it starts, and connects to Ray later. From then on its handler
# is not called: that of ray raises SystemExit instead, wherever the main thread is. ray.shutdown() does not put the
# handler back. That of SIGINT stays.
#
# Seen: before ray.init() the handler is drain, after it init.<locals>.sigterm_handler, and behind ray.shutdown() still.
# Way out: set handlers behind ray.init().
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile "ray==2.60.0"
cat > "$folder/handlers.py" <<'PROGRAM'
import signal, sys
import ray

def drain(number, frame):
    print("drain was called")

def named(number):
    return getattr(signal.getsignal(number), "__qualname__", None)

signal.signal(signal.SIGTERM, drain)
signal.signal(signal.SIGINT, drain)
before = named(signal.SIGTERM), named(signal.SIGINT)
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
within = named(signal.SIGTERM), named(signal.SIGINT)
ray.shutdown()
after = named(signal.SIGTERM), named(signal.SIGINT)
print(ray.__version__, before, within, after)
sys.exit(not (before == ("drain", "drain") and within == after and within[0] != "drain" and within[1] == "drain"))
PROGRAM
"$folder/venv/bin/python" "$folder/handlers.py"
