"""`penstock make-checkpoint OUT --like PRESET`."""

import argparse
import time

from pipeline.checkpoints.make_checkpoint import OVERRIDES, make_checkpoint
from pipeline.errors import ConfigError
from pipeline.system.sizes import human_bytes
from pipeline.tools.commands.progress import Progress


def make(options: argparse.Namespace) -> None:
    """Write the checkpoint, with progress, and say what was written."""
    progress = Progress()
    started = said = time.perf_counter()

    def written(done_bytes: int, total_bytes: int) -> None:
        nonlocal said
        if time.perf_counter() - said > 0.5 or done_bytes == total_bytes:
            said = time.perf_counter()
            progress.go_on(f"{human_bytes(done_bytes)} of {human_bytes(total_bytes)} written")

    overrides = {name: getattr(options, name) for name in OVERRIDES if getattr(options, name) is not None}
    if not 0 <= options.seed < 1 << 63:
        raise ConfigError(f"--seed: need a number from 0 to 2**63 - 1, have {options.seed}")
    try:
        make_checkpoint(
            options.out,
            options.like,
            dtype=options.dtype,
            stored=options.format,
            seed=options.seed,
            routing_skew=options.routing_skew,
            progress=written,
            **overrides,
        )
    except OSError as error:
        raise ConfigError(f"{error.filename or options.out}: {error.strerror}") from error
    progress.clear()
    nbytes = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {human_bytes(nbytes)} like {options.like}, in {time.perf_counter() - started:.1f} s")
