"""`penstock bench policies MODEL`."""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.engine.policies import POLICIES, find_policy
from pipeline.errors import ConfigError
from pipeline.system.table import print_json
from pipeline.system.written_files import is_plain
from pipeline.tools.bench.candidates import Samples
from pipeline.tools.bench.policy_runs import CHAINED_TITLE, PolicyBench, PolicyReport, measured_balance
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import beside_noise, counted, with_remarks
from pipeline.tools.commands.values import at_least_one, policy_from_text
from pipeline.tools.trace.overlap import LEGEND, policy_table
from pipeline.tools.trace.perfetto import write_trace
from pipeline.tools.trace.recording import Recording

ENOUGH = 3
"""Passes from which their spread says something."""


async def bench_policies(options: argparse.Namespace) -> None:
    """Measure and simulate, and print the two beside each other, or one JSON list."""
    at_least_one(options, "passes", "batch_tokens")
    if options.trace is not None and not is_plain(options.trace):
        need = "each policy has a trace of its own; give the name of a plain file"
        raise ConfigError(f"--trace {options.trace}: {need}")
    policies = {name: find_policy(policy_from_text(name)) for name in options.policies or POLICIES}
    # Policies differ in how they move groups, so all of them move.
    settings = {"host_groups": options.settings["gpu_groups"], **options.settings, "residency": False}
    check_one_device(settings)
    progress = Progress()
    tokens = options.batch_tokens or await measured_balance(options.model, settings, options.passes, progress.say)
    bench = PolicyBench(options.model, settings, options.passes, tokens, progress.say)
    reports = await bench.run(policies)
    progress.clear()
    if options.trace is not None:
        _write_traces(options.trace, bench.recordings)
    if options.json:
        print_json([report.as_dict() for report in reports])
    else:
        print(_table(reports))


def _table(reports: list[PolicyReport]) -> str:
    """The measured rows, with the simulation and its error beside the total; `current` has a second row."""
    both = [row for report in reports for row in (report, report.chained) if row is not None]
    beside = {
        ("simulated", "s"): [f"{report.simulated.total_ms / 1000:.3f}" for report in both],
        ("error", "%"): [f"{report.error:+.1%}".rstrip("%") for report in both],
        ("spread", "%"): [f"{Samples(report.pass_seconds).spread:.1%}".rstrip("%") for report in both],
    }
    chained = [report.chained for report in reports]
    measured = [replace(row.measured, policy=CHAINED_TITLE) if row in chained else row.measured for row in both]
    first = both[0]
    worst = max(report.logprob_difference for report in both)
    effect = _effect(dict(zip((row.policy for row in measured), both, strict=True)))
    said = (
        f"{counted(first.passes, 'pass')} of {first.batch_tokens} tokens each, in each of which all weight groups "
        f"moved; the same tokens came out of all, log-probabilities at most {worst:.2g} apart"
    )
    return with_remarks(policy_table(measured, beside), LEGEND, effect, said)


def _effect(reports: Mapping[str, PolicyReport]) -> str:
    """Say whether the policies differ by more than the passes of one do; empty where there is only one.

    By the medians of their passes: a few slow ones, when the machine had more to do, are no policy's.
    """
    if len(reports) < 2:
        return ""
    passes = {name: Samples(report.pass_seconds) for name, report in reports.items()}
    ranked = sorted(passes, key=lambda name: passes[name].median)
    fastest, slowest = passes[ranked[0]], passes[ranked[-1]]
    if len(fastest.values) < ENOUGH:
        return f"too few passes to tell how policies differ from noise: raise --passes to {ENOUGH} or more"
    longer, noise = slowest.median / fastest.median - 1, fastest.spread + slowest.spread
    return f"a pass of {ranked[-1]} took {longer:.1%} longer than of {ranked[0]}, {beside_noise(longer, noise)}"


def _write_traces(path: Path, recordings: Mapping[str, Recording]) -> None:
    """Write a file for each policy, whose name goes before the first suffix; a single policy keeps the name."""
    for title, recording in recordings.items():
        stem, dot, suffix = path.name.partition(".")
        plain = re.sub(r"[^\w-]+", "-", title)
        name = path.name if len(recordings) == 1 else f"{stem}.{plain}{dot}{suffix}"
        write_trace(path.with_name(name), recording)
        print(f"wrote {path.with_name(name)}", file=sys.stderr)
