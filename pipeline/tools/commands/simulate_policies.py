"""`penstock simulate`."""

import argparse
import dataclasses
from collections.abc import Mapping

from actors.core.ports import PrefetchPolicy
from pipeline.engine.actor_names import ACTORS
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES, Policy, find_policy
from pipeline.engine.settings import within
from pipeline.errors import ConfigError
from pipeline.system.table import print_json
from pipeline.system.written_files import check_writable
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.simulate_routing import simulate_routing
from pipeline.tools.commands.simulate_sections import simulate_sections
from pipeline.tools.commands.simulate_timings import LAYER_SECONDS, timings_from
from pipeline.tools.commands.values import option_of, policy_from_text
from pipeline.tools.simulation.closed_forms import closed_form_ms
from pipeline.tools.simulation.sim_line import Simulated, simulate
from pipeline.tools.simulation.timings import LayerTimings
from pipeline.tools.trace.overlap import LEGEND, policy_table
from pipeline.tools.trace.perfetto import write_trace
from pipeline.tools.trace.recording import Recording

CHAINED = "current, chained"
COUNTS = ("layers", "depth", "gpu_groups", "host_groups", "queue", "micro_batches", "passes")
MOST = 1 << 16
MOST_LAYERS = 50_000
"""Over all passes and micro-batches: a trace of that many holds about a gigabyte."""
MOST_SECONDS = 1e7
"""More virtual time is refused: a float would not tell microseconds apart, and timers would never be due."""
LAYERS_PER_SECOND = 2000
"""Roughly: longer work shows progress."""


def simulate_policies(options: argparse.Namespace) -> None:
    """Simulate the policies that were named, or sections, and print a table or JSON; or replay recorded routing."""
    if options.routing is not None:
        simulate_routing(options)
        return
    if options.slots is not None:
        raise ConfigError("--slots: need --routing FILE, have none")
    if options.sections is not None:
        simulate_sections(options)
        return
    if options.picture is not None:
        raise ConfigError("--picture: need --sections N or --routing FILE, have neither")
    for name in ("hop_seconds", "stays", "shared_disk"):
        if getattr(options, name):
            raise ConfigError(f"{option_of(name)}: need --sections N, have none")
    if options.trace is not None:
        if options.policy is None:
            raise ConfigError("--trace: need one policy to write down, have all; name it with --policy")
        check_writable(options.trace)
    for name in COUNTS:
        within(option_of(name), getattr(options, name), 1, MOST, or_none=True)
    timings, policies = timings_from(options), _policies(options)
    parts = max(policy.micro_batches for policy in policies.values())
    if timings.layers * options.passes * parts > MOST_LAYERS:
        have = f"{timings.layers} x {options.passes} x {parts}"
        raise ConfigError(f"--layers: need at most {MOST_LAYERS} over all passes and micro-batches, have {have}")
    layer_seconds = sum(getattr(timings, name) for name in LAYER_SECONDS)
    if timings.layers * options.passes * layer_seconds > MOST_SECONDS:
        have = f"{layer_seconds:.3g} s per layer and {timings.layers} layers x {options.passes} passes"
        raise ConfigError(f"timings: need at most {MOST_SECONDS:.0e} s in all, have {have}")
    progress = Progress()
    line = {name: getattr(options, name) for name in ("gpu_groups", "host_groups", "queue")}
    runs: dict[str, Simulated] = {}
    for label, policy in policies.items():
        if timings.layers * options.passes > LAYERS_PER_SECOND:
            progress.say(f"simulating {label}")
        runs[label] = simulate(timings, policy, passes=options.passes, **line)
    progress.clear()
    if options.trace is not None:
        _write_trace(options, timings, next(iter(runs.values())))
    if options.json:
        _print_json(options, runs)
    else:
        _print_table(timings, policies, runs)


def _print_json(options: argparse.Namespace, runs: Mapping[str, Simulated]) -> None:
    rows = {label: run.overlap().as_dict() for label, run in runs.items()}
    if CHAINED in rows:
        rows["current"]["chained"] = rows.pop(CHAINED)
    print_json(list(rows.values()) if options.policy is None else rows[options.policy])


def _print_table(timings: LayerTimings, policies: Mapping[str, PrefetchPolicy], runs: Mapping[str, Simulated]) -> None:
    rows = [dataclasses.replace(run.overlap(), policy=label) for label, run in runs.items()]
    known = () if timings.unlike else (*POLICIES, CHAINED)  # the formulas are of layers that are alike
    formulas = [
        f"{closed_form_ms(policy.name, timings, policy.micro_batches):.1f}" if label in known else ""
        for label, policy in policies.items()
    ]
    print(policy_table(rows, {("by", "formula"): formulas}), LEGEND, sep="\n\n")


def _write_trace(options: argparse.Namespace, timings: LayerTimings, run: Simulated) -> None:
    names = [field.name for field in dataclasses.fields(timings) if field.name not in ("order", "unlike")]
    unlike = [{name: getattr(one, name) for name in LAYER_SECONDS} for one in timings.unlike]
    configuration = {
        "command": "simulate",
        "policy": run.policy.name,
        "gpu_groups": options.gpu_groups,
        "timings": {name: getattr(timings, name) for name in names} | ({"unlike": unlike} if unlike else {}),
        "actors": list(ACTORS),
        "groups_per_pass": len(timings.order),
        "micro_batches": run.policy.micro_batches,
    }
    write_trace(options.trace, Recording(run.trace.spans, run.trace.counts, configuration))


def _policies(options: argparse.Namespace) -> dict[str, PrefetchPolicy]:
    """The policies to run by label, with the depth and the micro-batches that were asked for."""
    names = list(POLICIES) if options.policy is None else [options.policy]
    policies: dict[str, PrefetchPolicy] = {}
    for name in names:
        policy = find_policy(policy_from_text(name))
        if not isinstance(policy, Policy):
            if options.depth is not None or options.micro_batches is not None:
                raise ConfigError(f"--depth, --micro-batches: {name} says so itself; leave the options out")
            policies[name] = policy
            continue
        if options.depth is not None:
            if policy.goes_to_depth:
                policy = dataclasses.replace(policy, depth=options.depth)
            elif options.policy is not None:
                raise ConfigError(f"--depth: policy {name} asks a fixed distance ahead, or none; leave the option out")
        if options.micro_batches is not None:
            if policy.waits == "chained":
                policy = dataclasses.replace(policy, micro_batches=options.micro_batches)
            elif options.policy is not None and options.micro_batches > 1:
                fault = f"policy {name} does not chain its computations, so it runs one; have {options.micro_batches}"
                raise ConfigError(f"--micro-batches: {fault}; use stage3 or backpressure")
        policies[name] = policy
        if name == "current":
            policies[CHAINED] = CURRENT_CHAINED
    return policies
