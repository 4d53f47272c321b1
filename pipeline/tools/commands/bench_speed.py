"""`penstock bench speed MODEL`."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pipeline.errors import ConfigError
from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json, rows_aligned
from pipeline.tools.bench import llama_arm
from pipeline.tools.bench.arm_program import ArmRun
from pipeline.tools.bench.memory_limit import memory_limit
from pipeline.tools.bench.pass_arm import Scenario
from pipeline.tools.bench.speed import (
    ELSEWHERE,
    FLOORS,
    FROM_HOST,
    LLAMA,
    ONLY,
    OURS,
    WITHOUT,
    SpeedBench,
    arms_of,
    does,
)
from pipeline.tools.bench.speed_results import ArmResult, results
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import below_floor, nothing_moved, with_remarks
from pipeline.tools.commands.settings import plain
from pipeline.tools.commands.values import at_least_one, counts


async def bench_speed(options: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object; of an early end, by Ctrl-C or an error, what is complete.

    The exit status is 1 when an arm of ours has no figures. Raises ConfigError for what can never work.
    """
    at_least_one(options, "passes", "rounds", "prompt_tokens")
    for name in options.arms or ():
        if name not in WITHOUT:
            raise ConfigError(f"--arms: need some of {', '.join(map(repr, WITHOUT))}, have {name!r}")
    settings, limit = dict(plain(options.settings)), memory_limit(options.memory_limit, options.limit_by)
    if limit is not None:
        settings.setdefault("host_memory", limit.nbytes)
    check_one_device(settings)
    progress, scenarios = Progress(), _scenarios(options)
    bench = SpeedBench(options.model, settings, scenarios, limit, progress.say, options.beside, options.gguf)
    bench.check(options.against)
    names = options.arms or arms_of(settings, options.against)
    if options.beside is not None:
        names = [*names, *(f"{name}{ELSEWHERE}" for name in (OURS, FROM_HOST) if name in names)]
    names = [*names, *options.against]
    able = [name for name in names if any(does(name, one) for one in scenarios)]
    try:
        await bench.run(able, options.rounds)
    finally:
        progress.clear()
        if bench.runs:
            _tell(bench, names, as_json=options.json)
    return int(any(run.arm in WITHOUT and not run.rows for run in bench.runs))


def _tell(bench: SpeedBench, names: Sequence[str], *, as_json: bool) -> None:
    runs, scenarios = bench.runs, bench.scenarios
    if as_json:
        print_json([asdict(run) for run in runs], indent=None)
    else:
        arms = results(runs, names, scenarios)
        of_llama = llama_arm.remark(bench.folder) if LLAMA in names else ""
        remarks = (*_reasons(runs, names, scenarios), of_llama, _floors(runs), *_remarks(arms))
        print(with_remarks(table(arms), *remarks))


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Each number of requests greedily, those that are to draw their tokens, and first tokens."""
    decoding = [
        Scenario(requests=requests, prompt_tokens=options.prompt_tokens, passes=options.passes, sampled=sampled)
        for sampled, numbers in ((False, options.requests), (True, options.sampled))
        for requests in (counts("--sampled" if sampled else "--requests", numbers) if numbers else [])
    ]
    prompts = counts("--first-token", options.first_token) if options.first_token else []
    return [*decoding, *(Scenario(prompt_tokens=tokens, passes=2, first_token=True) for tokens in prompts)]


def table(arms: Sequence[ArmResult]) -> str:
    """A row for each arm in each scenario; the first arm is what the others are held against."""
    ours = {arm.scenario: arm for arm in reversed(arms) if arm.arm == arms[0].arm}
    many = len(ours) > 1

    def measured(text: Callable[[ArmResult], str]) -> Callable[[ArmResult], str]:
        return lambda arm: text(arm) if arm.pass_seconds else "-"

    def beside(text: Callable[[ArmResult, ArmResult], str]) -> Callable[[ArmResult], str]:
        return measured(lambda arm: text(arm, ours[arm.scenario]) if ours[arm.scenario].pass_seconds else "-")

    columns = {
        ("arm", ""): lambda arm: arm.arm,
        ("requests", "or prompt"): lambda arm: arm.scenario.name,
        ("pass", "s"): measured(lambda arm: f"{arm.median:.4f}"),
        ("p10 to p90", "s"): measured(lambda arm: _spread(arm.pass_seconds)),
        ("passes", ""): measured(lambda arm: str(len(arm.pass_seconds))),
        (arms[0].arm, "/ it"): beside(lambda arm, own: f"{own.median / arm.median:.2f}"),
        ("read", "a pass"): measured(lambda arm: human_bytes(arm.read_bytes_per_pass)),
        ("pass /", "floor"): measured(lambda arm: f"{statistics.median(arm.ratios):.3f}" if arm.ratios else "-"),
        ("read", "floor s"): measured(lambda arm: _floor(arm, "read")),
        ("H2D", "floor s"): measured(lambda arm: _floor(arm, "upload")),
        ("compute", "floor s"): measured(lambda arm: _floor(arm, "compute")),
        ("memory", "at most"): measured(lambda arm: human_bytes(arm.peak_bytes)),
        ("GPU", "at most"): measured(lambda arm: human_bytes(arm.device_bytes)),
        ("tokens", "as ours"): beside(lambda arm, own: "-" if arm.scenario.sampled else arm.same_as(own)),
    }
    on_a_gpu = any(arm.device_bytes for arm in arms)
    left_out = {("requests", "or prompt"): many, ("H2D", "floor s"): on_a_gpu, ("GPU", "at most"): on_a_gpu}
    return rows_aligned(arms, {heading: cell for heading, cell in columns.items() if left_out.get(heading, True)})


def _reasons(runs: Sequence[ArmRun], names: Sequence[str], scenarios: Sequence[Scenario]) -> list[str]:
    """Why cells are empty."""
    some = {name: ONLY[name][0] for name in names if not all(does(name, one) for one in scenarios)}
    lines = dict.fromkeys(run.reason for run in runs if run.reason) | dict.fromkeys(
        f"{name}: {what}, nothing else" for name, what in some.items()
    )
    return ["\n".join(lines)]


def _floors(runs: Sequence[ArmRun]) -> str:
    """Say what the GPU can do at best, as measured in these rounds; empty without one."""
    rows = [row for run in runs if run.arm == FLOORS for row in run.rows]
    if not rows:
        return ""
    best = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    link, memory = best["h2d_bytes_per_second"], best["memory_bytes_per_second"]
    return (
        f"Floors: the link moves {human_bytes(link)}/s, the GPU reads {human_bytes(memory)}/s of its memory and does "
        f"{best['operations_per_second'] / 1e12:.0f} TFLOP/s in bf16. All weights of a pass, "
        f"{human_bytes(best['pass_bytes'])}: {best['pass_bytes'] / link:.4f} s over the link, "
        f"{best['pass_bytes'] / memory:.4f} s from its memory, and computing a token of a prompt "
        f"{best['pass_bytes'] / best['operations_per_second'] * 1e6:.1f} us (two operations for each two bytes)."
    )


def _remarks(arms: Sequence[ArmResult]) -> tuple[str, str]:
    moving = {arm.arm: arm.moving_groups for arm in arms if arm.moving_groups is not None}
    unsaid = "these rows do not tell what reading, or moving groups ahead of the computing, is worth"
    ratios = {arm.arm: statistics.median(arm.ratios) for arm in arms if arm.ratios}
    return nothing_moved(moving, unsaid, some="a smaller --memory-limit"), below_floor(ratios)


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return f"{tenths[0]:.4f}-{tenths[-1]:.4f}"


def _floor(arm: ArmResult, name: str) -> str:
    return f"{arm.floors[name]:.4f}" if arm.floors else "-"
