"""What one GPU can do at best, by torch's own operations: the floors below which no pass of a model can be.

`python -m pipeline.tools.bench.device_floors JSON` is a program of its own; `penstock bench speed` runs it in every
round.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.groups.groups import plan_groups
from pipeline.models.model_config import read_config
from pipeline.models.specs import group_specs
from pipeline.tools.bench.arm_program import Row, serve
from pipeline.tools.bench.pass_arm import PassSettings

COPY_BYTES = 1 << 28
COPIES = 16
MEMORY_BYTES = 4 << 30
"""Far more than any cache holds."""
SQUARE = 8192
ROUNDS = 5


def run(settings: PassSettings) -> list[Row]:
    """Copies from pinned host memory, reads of the GPU's own memory, products in bf16, and the bytes of a pass."""
    device = torch.device("cuda")
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    memory = torch.zeros(MEMORY_BYTES // 4, dtype=torch.int32, device=device)
    square = torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16, device=device)

    def copy() -> None:
        for _ in range(COPIES):
            target.copy_(source, non_blocking=True)

    return [
        {
            "h2d_bytes_per_second": COPIES * COPY_BYTES / _seconds(copy),
            "memory_bytes_per_second": MEMORY_BYTES / _seconds(memory.max),
            "operations_per_second": 2 * SQUARE**3 / _seconds(lambda: square @ square),
            "pass_bytes": bytes_of_a_pass(Path(settings.folder)),
        }
    ]


def bytes_of_a_pass(folder: Path) -> int:
    """Those of all weights but the embedding, of which a pass needs few rows."""
    model = read_config(folder)
    with open_checkpoint(folder, direct=False) as checkpoint:
        groups = plan_groups(group_specs(model), checkpoint, model.quantization.format_of, model.drafting_layers).groups
    return sum(group.needed_bytes for group in groups)


def _seconds(work: Callable[[], object]) -> float:
    """The median, without the first time."""
    seconds = []
    for _ in range(1 + ROUNDS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    sys.exit(serve(run, PassSettings, sys.argv[1:]))
