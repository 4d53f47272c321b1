"""`penstock verify MODEL`."""

import argparse
import shlex
import time
from collections.abc import Sequence

from pipeline.errors import CheckpointError
from pipeline.system.sizes import human_bytes
from pipeline.system.written_files import check_writable
from pipeline.tools.commands.progress import Progress
from pipeline.tools.verify.known import SUMS_FILE, read_sums, write_sums
from pipeline.tools.verify.verify import Verdict, verify

NOTHING_TO_COMPARE = 2


def verify_and_report(options: argparse.Namespace) -> int:
    """A line for each file; 0, or 2 when nothing is known of some weights. Raises CheckpointError for damage."""
    progress, started = Progress(), time.perf_counter()

    def say(done_bytes: int, total_bytes: int) -> None:
        progress.go_on(f"{human_bytes(done_bytes)} of {human_bytes(total_bytes)} read")

    sums_file = options.sums or options.model / SUMS_FILE
    if options.write:
        check_writable(sums_file)
    sums = read_sums(sums_file)
    verdicts = verify(options.model, sums, sums_file, say, all_files=options.write)
    progress.clear()
    width = max((len(one.name) for one in verdicts), default=0)
    for one in verdicts:
        why = ", ".join(one.sources) or "nothing to compare with"
        print(f"{one.word:<8} {one.name:<{width}} {human_bytes(one.nbytes):>8}  {'' if one.faults else why}".rstrip())
    nbytes = sum(one.digests.nbytes for one in verdicts if one.digests is not None)
    if nbytes:
        seconds = time.perf_counter() - started
        print(f"{human_bytes(nbytes)} read in {seconds:.1f} s, {human_bytes(nbytes / seconds)}/s")
    faults = [fault for one in verdicts for fault in one.faults]
    if faults:
        raise CheckpointError("\n".join([*faults, *_advice(verdicts)]))
    if options.write:
        write_sums(sums_file, options.model, {one.name: one.digests for one in verdicts if one.digests is not None})
        print(f"{sums_file}: written; `penstock verify {shlex.quote(str(options.model))}` compares with it from now on")
        return 0
    return _status(options, verdicts)


def _advice(verdicts: Sequence[Verdict]) -> list[str]:
    """Say what to do about files whose bytes have changed; why others cannot be read has been said."""
    damaged = [one.name for one in verdicts if one.word == "damaged"]
    if not damaged:
        return []
    count = f"{len(damaged)} of {len(verdicts)} files {'is' if len(damaged) == 1 else 'are'} damaged"
    return [f"{count}: fetch {', '.join(damaged)} again, and look after the disk and the memory of this machine"]


def _status(options: argparse.Namespace, verdicts: Sequence[Verdict]) -> int:
    weights = [one for one in verdicts if one.name.endswith(".safetensors")]
    if weights and all(one.sources for one in weights):
        return 0
    print(
        f"nothing is known of {sum(not one.sources for one in weights)} of {len(weights)} weight files: once you trust "
        f"them, run `penstock verify {shlex.quote(str(options.model))} --write`"
    )
    return NOTHING_TO_COMPARE
