#!/bin/bash
# torch 2.13.0: in a new thread a matrix product does not heed torch.set_num_threads.
#
# torch.set_num_threads "sets the number of threads used for intraop parallelism on CPU", says its documentation, with
# no word of the thread that calls it. OpenMP keeps that number by thread, and torch passes it on in each new thread
# only when something asks torch for it: an elementwise operation does (at::parallel_for), torch.get_num_threads()
# does, a product that goes to oneDNN or MKL at once does not. So a thread whose first operation is a product computes
# with every core, whatever was set, until it does something else; the same thread then reports the number that was set.
#
# Seen with OMP_NUM_THREADS=8 and torch.set_num_threads(1), OS threads that appear while the new thread works:
#   bfloat16 mv: 7    bfloat16 mm: 7    float32 mm: 7    (torch.get_num_threads() in that thread afterwards: 1)
#   the same behind an elementwise sum, or behind torch.get_num_threads(): 0
# Way out: call torch.get_num_threads() first in every thread that computes.
#
# Exits non-zero when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/threads.py" <<'PROGRAM'
import os, sys, threading
import torch

torch.set_num_threads(1)
matrix = {name: torch.zeros(2048, 2048, dtype=getattr(torch, name)) for name in ("bfloat16", "float32")}
vector = torch.zeros(2048, dtype=torch.bfloat16)
first = {
    "bfloat16 mv": lambda: torch.mv(matrix["bfloat16"], vector),
    "bfloat16 mm": lambda: torch.mm(matrix["bfloat16"], matrix["bfloat16"]),
    "float32 mm": lambda: torch.mm(matrix["float32"], matrix["float32"]),
    "sum, then float32 mm": lambda: torch.mm(matrix["float32"] + 1, matrix["float32"]),
    "get_num_threads, then float32 mm": lambda: (torch.get_num_threads(), torch.mm(matrix["float32"], matrix["float32"])),
}

def work():
    before = len(os.listdir("/proc/self/task"))
    first[sys.argv[1]]()
    print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())

thread = threading.Thread(target=work)
thread.start()
thread.join()
PROGRAM
"$folder/venv/bin/python" -c "import torch; print('torch', torch.__version__)"
changed=0
try() {
    got=$(OMP_NUM_THREADS=8 "$folder/venv/bin/python" "$folder/threads.py" "$1")
    echo "$1: threads that appeared, and number reported: $got (was $2)"
    [ "$got" = "$2" ] || changed=1
}
try "bfloat16 mv" "7 1"
try "bfloat16 mm" "7 1"
try "float32 mm" "7 1"
try "sum, then float32 mm" "0 1"
try "get_num_threads, then float32 mm" "0 1"
exit $changed
