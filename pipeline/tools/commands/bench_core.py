"""`penstock bench core`."""

import argparse
from dataclasses import asdict

from pipeline.system.table import print_json
from pipeline.tools.bench.core import bench_core
from pipeline.tools.commands.values import at_least_one


def core(options: argparse.Namespace) -> None:
    """Measure the core, and print a table or one JSON object."""
    at_least_one(options, "rounds")
    report = bench_core(options.rounds)
    if options.json:
        print_json(asdict(report))
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
