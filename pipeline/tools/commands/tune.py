"""`penstock tune MODEL`."""

import argparse
import logging
import sys
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.system.guard import Once
from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json
from pipeline.tools.bench.candidates import DEFAULT, TOLERANCE, ReadSizes, Samples, best_readings, choose_sizes
from pipeline.tools.bench.tune import QUEUES, Tuner, TuneReport
from pipeline.tools.commands.heat_map import heat_map
from pipeline.tools.commands.one_device import check_one_device
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.remarks import beside_noise, counted
from pipeline.tools.commands.values import as_code, option_of
from pipeline.tools.trace.summary import SPOKEN

MOST_GROUPS = 64
BOUND = 0.9
"""From this share of a pass on, the busiest resource counts as what binds it."""
MIB = 1 << 20


async def tune(options: argparse.Namespace) -> None:
    """Measure, simulate and try, and print what is best, or one JSON object."""
    for name in ("batch_tokens", "most_groups", "passes"):
        most = MOST_GROUPS if name == "most_groups" else sys.maxsize
        if not 1 <= (have := getattr(options, name)) <= most:
            limit = f" and at most {MOST_GROUPS}" if most == MOST_GROUPS else ""
            raise ConfigError(f"{option_of(name)}: need at least 1{limit}, have {have}")
    settings, progress = options.settings, Progress()
    check_one_device(settings)
    tuner = Tuner(options.model, settings, options.batch_tokens, options.most_groups, options.passes, progress.go_on)
    is_new, logger = Once(), logging.getLogger("penstock")

    def said_once(record: logging.LogRecord) -> bool:
        return is_new(record.getMessage())

    logger.addFilter(said_once)  # the model is opened many times
    try:
        report = await tuner.run()
    finally:
        logger.removeFilter(said_once)
    progress.clear()
    if options.json:
        texts = {"open": open_line(report), "advice": " ".join([effect(report), advice(report), staying(report)])}
        print_json(report.as_dict() | texts)
    else:
        tables = [_reading(report.rates), _simulation(report), _finalists(report)]
        print("\n\n".join([*tables, effect(report), advice(report), staying(report), open_line(report)]))


def open_line(report: TuneReport) -> str:
    """The chosen settings as a line of Python to paste."""
    settings = dict(report.chosen.settings)
    if "host_groups" not in report.groups_settings:
        del settings["host_groups"]
    chunk_bytes = settings["chunk_bytes"]
    texts = {name: as_code(value) for name, value in settings.items()}
    texts["chunk_bytes"] = f"{chunk_bytes // MIB} << 20" if chunk_bytes % MIB == 0 else str(chunk_bytes)
    texts |= {name: as_code(value) for name, value in report.settings.items()}
    arguments = ", ".join(f"{name}={text}" for name, text in texts.items())
    return f"Model.open({str(report.folder)!r}, {arguments})"


def effect(report: TuneReport) -> str:
    """Say whether the settings made a difference for real, or no more than running the same ones again did."""
    cells = _cells(report).values()
    map_spread = max(cells) / min(cells) - 1
    differ = f"the slowest is {map_spread:.0%} slower than the fastest in simulation, and {report.effect:.0%} for real"
    again = f"the same ones, run again, were up to {report.noise:.0%} slower"
    if report.effect > report.noise:
        return f"The settings have an effect: {differ}; {again}."
    return (
        f"The settings have no effect that can be told from noise: {differ}, but {again}. Tune again while the machine "
        "has nothing else to do, or with more --passes."
    )


def staying(report: TuneReport) -> str:
    """Say what residency=False costs, or that it costs nothing."""
    have = report.staying
    stay = have.groups - have.moving_groups
    if not stay:
        return "No memory is left in which groups could stay: without residency=False all of them move, too."
    fastest = min(one.measured.median for one in report.finalists)
    many, then = f"{stay}", ""
    if not have.moving_groups:
        many, then = "all", ", and then the other settings have no effect"
    return (
        f"In these runs all {have.groups} groups moved. By default {many} of them stay in memory, and a pass takes "
        f"{have.measured.median:.3f} s, {have.measured.median / fastest:.2f} x the fastest of these: leave "
        f"residency=False out to have that{then}."
    )


def advice(report: TuneReport) -> str:
    """Say which resource binds a pass, and what a larger budget would buy."""
    by_budget: dict[int, float] = {}
    for candidate, seconds in report.simulated.items():
        by_budget[candidate.gpu_groups] = min(seconds, by_budget.get(candidate.gpu_groups, seconds))
    fastest = min(by_budget.values())
    flat_from = min(budget for budget, seconds in by_budget.items() if seconds <= fastest * (1 + TOLERANCE))
    busiest = max(report.resources, key=report.resources.__getitem__)
    busy, name = report.resources[busiest], SPOKEN[busiest]
    if busy >= BOUND * fastest:
        binds = f"{name} binds from {counted(flat_from, 'group')} on"
        said = f"{name[0].upper()}{name[1:]} works for {busy:.3f} s of a simulated pass of {fastest:.3f} s."
    else:
        binds = f"from {counted(flat_from, 'group')} on a pass gets no shorter"
        said = f"Nothing binds alone: {name} works for {busy:.3f} s of a simulated pass of {fastest:.3f} s."
    chosen = report.chosen.gpu_groups
    larger = {budget: seconds for budget, seconds in by_budget.items() if budget > chosen}
    if not larger:
        return f"{said} No budget larger than {counted(chosen, 'group')} was tried."
    if min(larger.values()) >= by_budget[chosen] * (1 - TOLERANCE):
        return f"{said} A larger budget would buy nothing: {binds}."
    shortest = min(larger.values())
    budget = min(budget for budget, seconds in larger.items() if seconds <= shortest * (1 + TOLERANCE))
    return (
        f"{said} By the simulation a budget of {counted(budget, 'group')} "
        f"({human_bytes(report.window_bytes[budget])}) would be {by_budget[chosen] / larger[budget] - 1:.0%} faster, "
        "which the real runs do not show beyond their spread."
    )


def _reading(rates: Mapping[ReadSizes, Samples]) -> str:
    lanes, chunks = (sorted({reading[index] for reading in rates}) for index in (0, 1))
    lines = ["reading, GB/s".ljust(15) + "".join(f"{f'chunk {chunk / MIB:g} MiB':<17}" for chunk in chunks).rstrip()]
    chosen = choose_sizes(rates)
    for count in lanes:
        cells = []
        for chunk in chunks:
            samples, mark = rates[ReadSizes(count, chunk)], "*" if chosen == (count, chunk) else ""
            cells.append(f"{f'{samples.median / 1e9:.2f} ± {samples.spread:.1%}{mark}':<17}")
        lines.append(f" {counted(count, 'lane')}".ljust(15) + "".join(cells).rstrip())
    lines.append("* chosen: the default unless another is faster by more than the spreads")
    return "\n".join(lines)


def _simulation(report: TuneReport) -> str:
    best = _cells(report)
    lanes = {count: counted(count, "lane") for _, count in sorted(best)}
    chosen = (report.chosen.gpu_groups, report.chosen.reading.reader_lanes)
    budgets = range(1, report.most_groups + 1)
    hosts = ""
    if "host_groups" in report.groups_settings:
        hosts = f"; of host_groups={DEFAULT.host_groups} and host_groups=gpu_groups the faster, as far as they fit"
    title = f"simulated pass of {report.batch_tokens} tokens, relative to the best, {min(best.values()):.3f} s{hosts}"
    drawn = heat_map(best, report.window_bytes, budgets, lanes, chosen)
    return f"{title}\n{drawn}\n{_lanes(report.rates)}\n{_queues(report)}"


def _cells(report: TuneReport) -> dict[tuple[int, int], float]:
    """Seconds of a simulated pass by budget and reader lanes, with the better of the `host_groups` that were tried."""
    best: dict[tuple[int, int], float] = {}
    for candidate, seconds in report.by_lanes.items():
        cell = (candidate.gpu_groups, candidate.reading.reader_lanes)
        best[cell] = min(seconds, best.get(cell, seconds))
    return best


def _lanes(rates: Mapping[ReadSizes, Samples]) -> str:
    """Say whether the columns of the map differ by more than reading in the same way does from time to time."""
    ranked = sorted((rates[reading] for reading in best_readings(rates)), key=lambda samples: samples.median)
    differ, spreads = ranked[-1].median / ranked[0].median - 1, ranked[-1].spread + ranked[0].spread
    return f"lanes change the reading by up to {differ:.1%}, {beside_noise(differ, spreads)}"


def _queues(report: TuneReport) -> str:
    """Say how much the sizes of the queues change, the other settings being the same."""
    by_budget: dict[tuple[int, int], list[float]] = {}
    for one, seconds in report.simulated.items():
        by_budget.setdefault((one.gpu_groups, one.host_groups), []).append(seconds)
    most = max(max(seconds) / min(seconds) - 1 for seconds in by_budget.values())
    why = ": the budget holds groups back before they do" if most <= TOLERANCE else ""
    return f"queues of {', '.join(map(str, QUEUES))} messages change a simulated pass by up to {most:.1%}{why}"


def _finalists(report: TuneReport) -> str:
    lines = [f"{'for real':31} measured s          simulated s   error"]
    for one in report.finalists:
        candidate, marks = one.candidate, [" default"] * (one.candidate == DEFAULT)
        hosts = "" if "host_groups" not in report.groups_settings else f" host {candidate.host_groups}"
        name = f"{counted(candidate.gpu_groups, 'group')}{hosts} queue {candidate.queue}{''.join(marks)}"
        measured = f"{one.measured.median:.3f} ± {one.measured.spread:.1%}"
        chosen = "   * chosen" if candidate == report.chosen else ""
        lines.append(f"{name:31} {measured:19} {one.simulated:11.3f} {one.error:+7.1%}{chosen}")
    return "\n".join(lines)
