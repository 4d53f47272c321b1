"""`penstock bench throughput MODEL`."""

import argparse
import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.errors import ConfigError
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned, print_json
from pipeline.tools.bench.arm_program import ArmRun, Row
from pipeline.tools.bench.arms import OURS, Arms, agreement, median_rows
from pipeline.tools.bench.load import Load
from pipeline.tools.bench.memory_limit import memory_limit
from pipeline.tools.bench.throughput import bench_throughput
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import below_floor, nothing_moved, with_remarks
from pipeline.tools.commands.settings import plain
from pipeline.tools.commands.values import at_least_one, counts


async def throughput(options: argparse.Namespace) -> None:
    """Measure, and print a table or one JSON object."""
    requests, load = counts("--requests", options.requests), _load(options)
    limit = memory_limit(options.memory_limit, options.limit_by)
    settings = dict(options.settings)
    if options.memory_limit is not None:
        settings.setdefault("host_memory", options.memory_limit)
    check_one_device(settings)
    result: dict[str, Any] = {
        "model": str(options.model),
        "prompt_tokens": [load.shortest, load.longest],
        "new_tokens": load.new_tokens,
        "arrivals_per_second": load.arrivals_per_second,
        "seed": load.seed,
    }
    progress, runs = Progress(), list[ArmRun]()
    if options.against is None and options.memory_limit is None:
        if options.rounds is not None:
            raise ConfigError("--rounds: need --against or --memory-limit; have neither")
        measured = await bench_throughput(options.model, settings, load, requests, progress.say)
        rows = [row.as_dict() for row in measured]
        result["rows"], columns = rows, _columns(rows)
    else:
        at_least_one(options, "rounds")
        arms = Arms(options.model, plain(settings), load, requests, limit, progress.say)
        arms.check(options.against)
        runs = await arms.run(options.against, options.rounds or 1)
        rows, columns = median_rows(runs, OURS), _compared_columns(runs)
        result |= {"memory_limit_bytes": limit and limit.nbytes, "limit_by": limit and limit.way}
        result["runs"] = [asdict(run) for run in runs]
    progress.clear()
    if options.json:
        print_json(result, indent=None)
        return
    print(with_remarks(aligned(columns), *_remarks(options, rows)))
    if options.against is not None:
        _print_agreement(rows, median_rows(runs, options.against), options.against)


def _load(options: argparse.Namespace) -> Load:
    prompt = re.fullmatch(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?", options.prompt_tokens)
    shortest, longest = (int(prompt[1]), int(prompt[2] or prompt[1])) if prompt else (0, 0)
    if not 0 < shortest <= longest:
        raise ConfigError(f"--prompt-tokens: need a number or a range such as 8-64, have {options.prompt_tokens!r}")
    at_least_one(options, "new_tokens")
    return Load(shortest, longest, options.new_tokens, _arrival(options.arrival), options.seed)


def _arrival(text: str | None) -> float | None:
    if text is None:
        return None
    process, _, rate = text.partition(":")
    with contextlib.suppress(ValueError):
        if process == "poisson" and 0 < float(rate) < math.inf:
            return float(rate)
    raise ConfigError(f"--arrival: need poisson:RATE with requests per second, such as poisson:2; have {text!r}")


def _remarks(options: argparse.Namespace, rows: Sequence[Row]) -> tuple[str, str]:
    moving = {options.model.name: max(row["moving_groups"] for row in rows)}
    ratios = {f"requests={row['requests']:.0f}": 1 / row["floor_share"] for row in rows}
    return nothing_moved(moving, "a pass is computing alone, and more requests share no reading"), below_floor(ratios)


def _columns(rows: Sequence[Row]) -> dict[tuple[str, str], list[str]]:
    """Return the columns of the table; a dash stands for what an arm has not measured."""

    def column(name: str, digits: int) -> list[str]:
        values = [row.get(name) for row in rows]
        return ["-" if value is None or math.isnan(value) else f"{value:.{digits}f}" for value in values]

    return {
        ("requests", ""): column("requests", 0),
        ("passes", ""): column("passes", 0),
        ("tokens/s", ""): column("tokens_per_second", 2),
        ("pass", "s"): column("pass_seconds", 3),
        ("tokens", "per pass"): column("tokens_per_pass", 1),
        ("first token", "s"): column("first_token_seconds", 3),
        ("p90", "s"): column("first_token_seconds_p90", 3),
        ("next token", "s"): column("output_token_seconds", 3),
        ("read", "per token"): [human_bytes(row.get("read_bytes_per_token", 0)) for row in rows],
        ("read", "floor s"): column("read_floor_seconds", 3),
        ("compute", "floor s"): column("compute_floor_seconds", 3),
        ("larger /", "pass"): column("floor_share", 3),
    }


def _compared_columns(runs: Sequence[ArmRun]) -> dict[tuple[str, str], list[str]]:
    """Medians over the rounds, arm by arm, with the range of the tokens per second and the most memory."""
    names, rows, ranges, peaks = [], [], [], []
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        peak = max(run.peak_bytes for run in own)
        for index, row in enumerate(median_rows(runs, arm)):
            rates = [run.rows[index]["tokens_per_second"] for run in own if "seconds" in run.rows[index]]
            names.append(arm)
            rows.append(row)
            ranges.append(f"{min(rates):.2f}-{max(rates):.2f}" if rates else "over the limit")
            peaks.append(human_bytes(peak))
    beside = {("tokens/s", "min-max"): ranges, ("memory", "at most"): peaks}
    return {("arm", ""): names, **_columns(rows), **beside}


def _print_agreement(ours: Sequence[Row], theirs: Sequence[Row], against: str) -> None:
    print()
    for mine, other in zip(ours, theirs, strict=True):
        requests = f"{mine['requests']:.0f} requests"
        if "seconds" not in other:
            print(f"{requests}: {against} needs more memory than the limit")
            continue
        whole, tokens = agreement(mine, other)
        total = sum(map(len, mine["token_ids"]))
        ratio = mine["tokens_per_second"] / other["tokens_per_second"]
        same = f"{whole} requests and {tokens} of {total} tokens agree up to the first difference"
        print(f"{requests}: {ratio:.2f} x {against}'s tokens/s; {same}")
