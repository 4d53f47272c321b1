"""`penstock bench pass MODEL` and `penstock bench core`."""

import argparse
import json
import sys

from pipeline.bench.core import bench_core
from pipeline.bench.one_pass import PassReport, bench_pass
from pipeline.commands.options import model_settings
from pipeline.commands.progress import Progress
from pipeline.errors import ConfigError
from pipeline.memory import human_bytes
from pipeline.trace.perfetto import write_trace
from pipeline.trace.target import check_writable


async def bench(options: argparse.Namespace) -> None:
    """Measure, and print a table or one JSON object."""
    if options.passes < 1:
        raise ConfigError(f"--passes: need at least 1, have {options.passes}")
    if options.trace is not None:
        check_writable(options.trace)
    progress = Progress()
    report, recording = await bench_pass(options.model, model_settings(options), options.passes, progress.say)
    progress.clear()
    if options.json:
        json.dump(report.as_dict(), sys.stdout, indent=2)
        print()
    else:
        _print_pass(report)
    if options.trace is not None:
        write_trace(options.trace, recording)


def _print_pass(report: PassReport) -> None:
    rows = {
        "pass": report.pass_seconds_each,
        "recorded pass": report.recorded_seconds_each,
        "read floor": report.read_floor_seconds_each,
        "H2D floor": report.upload_floor_seconds_each,
        "compute floor": report.compute_floor_seconds_each,
    }
    for name, seconds in rows.items():
        if not any(seconds):
            continue  # memory that is one has no link, and what stays is not read
        median = sorted(seconds)[len(seconds) // 2]
        print(f"{name:14} {median:8.3f} s   ({min(seconds):.3f} to {max(seconds):.3f})")
    low, high = min(report.ratios), max(report.ratios)
    print(f"{'ratio':14} {report.ratio:8.3f}     ({low:.3f} to {high:.3f}), median of {report.passes} rounds")
    print(f"{'recording':14} {report.recording_ratio - 1:+8.1%}     of a pass")
    rate = report.read_bytes_per_pass / report.pass_seconds
    needed = report.read_bytes_per_pass / report.needed_bytes_per_pass
    print(
        f"{'read':14} {human_bytes(report.read_bytes_per_pass)} per pass, {human_bytes(rate)}/s, {needed:.3f} x needed"
    )
    print(
        f"{'waited':14} {report.first_group_wait_seconds * 1000:.1f} ms for a pass's first group, "
        f"{report.group_wait_seconds * 1000:.1f} ms for a group on average"
    )


def core(options: argparse.Namespace) -> None:
    """Measure the core, and print a table or one JSON object."""
    if options.rounds < 1:
        raise ConfigError(f"--rounds: need at least 1, have {options.rounds}")
    report = bench_core(options.rounds)
    if options.json:
        json.dump(report.as_dict(), sys.stdout, indent=2)
        print()
        return
    for loop in report.hop_messages_per_second:
        hop, group = report.hop_messages_per_second[loop], report.line_group_microseconds[loop]
        print(
            f"{loop:8} {hop:10,.0f} messages/s per hop   {group:6.1f} us per group of the whole line, "
            f"{report.recorded_group_microseconds[loop]:.1f} recorded"
        )
    off = report.simulated_pass_seconds / report.ideal_pass_seconds - 1
    print(
        f"a simulated 80-layer pass takes {report.simulated_pass_seconds:.4f} s, {off:+.3%} of the ideal "
        f"{report.ideal_pass_seconds:.1f} s, in {report.real_seconds_per_simulated_pass * 1000:.0f} ms of real time"
    )
