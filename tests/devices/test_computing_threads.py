"""A lane computes with as many threads as the program said, whatever its first operation is."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time, torch
from pipeline.devices.lane import Lane
from pipeline.reading.reading_choice import _computing

torch.set_num_threads(int(sys.argv[1]))
matrix_FD, vector_D = torch.zeros(2048, 2048, dtype=torch.bfloat16), torch.zeros(2048, dtype=torch.bfloat16)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
lane = Lane("compute")
lane.submit(lambda: torch.mv(matrix_FD, vector_D), ()).future.result()
print(count() - before)
before = count()
with _computing():
    time.sleep(0.2)
    print(count() - before)
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_product_takes_as_many_threads_as_were_set(threads: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        env={**os.environ, "OMP_NUM_THREADS": "8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.split() == [str(threads)] * 2, "those of the lane, those of the trial"
