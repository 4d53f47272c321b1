"""`penstock plan MODEL`."""

import argparse
import asyncio
import dataclasses
import statistics
import textwrap
from collections.abc import Sequence

from pipeline.api import Model
from pipeline.checkpoints.config_alone import ConfigAlone, config_alone
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.errors import ConfigError
from pipeline.generation.pass_size import LEAST_TOKENS
from pipeline.generation.sized_plans import DEFAULT_CONTEXT_TOKENS
from pipeline.system.sizes import human_bytes
from pipeline.system.table import print_json
from pipeline.tools.bench.expert_planning import ExpertOutlook
from pipeline.tools.bench.floors import refuse_experts
from pipeline.tools.bench.machine_rates import measure_rates
from pipeline.tools.bench.planning import Placed, Planned, balanced_tokens, plan_alone, plan_model, sized
from pipeline.tools.bench.steady_passes import steady_pass_seconds
from pipeline.tools.commands.plan_machine import told_machine
from pipeline.tools.commands.plan_several import plan_several
from pipeline.tools.commands.progress import Progress
from pipeline.tools.routing.recorded_routing import RecordedRouting, read_routing

MOST_TOKENS = 1 << 16
FEWEST_TOKENS = 8
"""Of a recording, for a hit rate that is counted in its second half."""


def plan_forecast(options: argparse.Namespace) -> None:
    """Measure or take the numbers, plan, and print. Raises ConfigError naming the option that can never work."""
    if not 1 <= options.batch_tokens <= MOST_TOKENS:
        raise ConfigError(f"--batch-tokens: need a number from 1 to {MOST_TOKENS}, have {options.batch_tokens}")
    alone = config_alone(options.model, options.format)
    if alone is None and options.format is not None:
        raise ConfigError(f"--format: {options.model} has weights, and is planned as these are stored; leave it out")
    if options.nodes is None and options.hop_seconds is not None:
        raise ConfigError("--hop-seconds: is from one node to the next; say --nodes too, or leave it out")
    settings = Config.from_arguments(options.settings)
    told = told_machine(options, settings)
    if options.check is not None:
        _check_checking(options, elsewhere=told is not None, alone=alone is not None)
    most = settings.max_tokens_per_pass
    if options.batch_tokens > (most or LEAST_TOKENS):
        most = options.batch_tokens
    longest = options.batch_tokens + 1 if options.check and options.batch_tokens >= DEFAULT_CONTEXT_TOKENS else None
    context_tokens = settings.context_tokens or longest
    settings = dataclasses.replace(settings, max_tokens_per_pass=most, context_tokens=context_tokens)
    routing = None if options.routing is None else _decoding(options, settings, alone)
    if options.nodes is not None or settings.devices is not None:
        plan_several(options, settings, alone, told, routing)
        return
    device, rates = told or (open_device(settings.device), None)
    tokens, progress = options.batch_tokens, Progress()
    if alone is not None:
        _print(plan_alone(alone, settings, device, rates, tokens, routing), [], as_json=options.json)
        return
    if rates is None:
        rates = asyncio.run(measure_rates(options.model, settings, tokens, progress.say))
        progress.clear()
    planned = plan_model(options.model, settings, device, rates, tokens, routing)
    measured = asyncio.run(_checked(options, settings)) if options.check else []
    _print(planned, measured, as_json=options.json)


def _check_checking(options: argparse.Namespace, *, elsewhere: bool, alone: bool) -> None:
    """Refuse to run passes where that cannot be done."""
    if options.check < 1 or elsewhere:
        raise ConfigError(f"--check: need at least 1 pass, and the machine here, have {options.check}")
    if options.nodes is not None or "devices" in options.settings:
        raise ConfigError("--check: runs passes on one device; leave it out, or name that device")
    if alone:
        why = f"runs passes, for which {options.model} has no weights"
        raise ConfigError(f"--check: {why}; name a folder that has them")
    refuse_experts(options.model, "--check")


def _decoding(options: argparse.Namespace, settings: Config, alone: ConfigAlone | None) -> RecordedRouting:
    with sized(options.model, alone, settings) as (model, _, _):
        if not model.expert_kinds:
            why = f"says which experts passes use, of which {options.model} has none"
            raise ConfigError(f"--routing {options.routing}: {why}; leave it out")
    routing = read_routing(options.routing)
    if routing.decoded_tokens < FEWEST_TOKENS:
        have = f"of {FEWEST_TOKENS} decoded tokens or more, have {routing.decoded_tokens}"
        raise ConfigError(f"--routing {options.routing}: need a recording {have}; record a longer run")
    return routing


def _print(planned: Placed, measured: Sequence[float], *, as_json: bool) -> None:
    if as_json:
        print_json({**planned.as_dict(), **({"measured_seconds": measured} if measured else {})})
        return
    print(lines(planned))
    if measured and isinstance(planned, Planned):
        median, expected = statistics.median(measured), planned.forecast.pass_seconds
        spread = f"{min(measured):.3f} to {max(measured):.3f}"
        off = f"the forecast is {expected / median - 1:+.1%} off"
        print(f"measured   {median:.3f} s per pass ({spread}): {off}")


async def _checked(options: argparse.Namespace, settings: Config) -> list[float]:
    """Run passes as they were forecast, and return their seconds."""
    tokens, progress = options.batch_tokens, Progress()
    progress.say(f"running {options.check} passes of {tokens} tokens")
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    async with Model.open(options.model, **given) as model:
        await steady_pass_seconds(model, tokens, 1)
        seconds = await steady_pass_seconds(model, tokens, options.check)
    progress.clear()
    return seconds


def lines(placed: Placed) -> str:
    """Return the lines that people read."""
    drawn, computed_from = placed.drawn, placed.computed_from
    sizes = drawn.catalog.group_bytes(drawn.catalog.places[0])
    places = [f"{human_bytes(size)} stay in {place} memory" for place, size in placed.resident_bytes.items() if size]
    printed = [
        f"model      {drawn.model.family} · {drawn.model.layers} layers · {human_bytes(sum(sizes.values()))} in "
        f"{len(sizes)} weight groups",
        *([] if computed_from is None else [f"sizes      computed, without weights, from {computed_from}"]),
        f"plan       {textwrap.indent(str(drawn.plan.memory), ' ' * 11).lstrip()}",
        f"kv room    {drawn.plan.kv_room}",
        *([] if drawn.plan.state_room is None else [f"state room {drawn.plan.state_room}"]),
        f"pass size  {drawn.plan.pass_size}",
        f"placement  {', '.join([*places, f'{human_bytes(placed.read_bytes_per_pass)} read per pass'])}",
    ]
    if isinstance(placed, Planned):
        printed += _forecast_lines(placed)
    else:
        gpu = ", --h2d-gbps, --gpu-memory" if len(drawn.plan.slots) > 1 else ""
        numbers = f"--disk-gbps, --tflops, --host-memory{gpu}"
        printed.append(f"forecast   none: without weights nothing can be measured here; for one, give all of {numbers}")
    return "\n".join(printed)


def _forecast_lines(planned: Planned) -> list[str]:
    drawn, rates, now = planned.drawn, planned.rates, planned.forecast
    h2d = "" if rates.h2d_bytes_per_second is None else f" · H2D {human_bytes(rates.h2d_bytes_per_second)}/s"
    resources = " · ".join(f"{name} {seconds:.3f} s" for name, seconds in now.resource_seconds.items())
    balance = balanced_tokens(planned)
    printed = [
        f"machine    disk {human_bytes(rates.disk_bytes_per_second)}/s{h2d}",
        f"forecast   {now}",
        f"binds      {now.binds}: {resources}",
        *(f"otherwise  {name}: {one}" for name, one in planned.otherwise.items()),
        *([] if planned.experts is None else _expert_lines(planned.experts)),
    ]
    if balance is not None:
        printed.append(f"balance    up to about {balance} tokens per pass a token more costs almost nothing")
    if drawn.plan.kv.moving:
        states = "" if drawn.plan.state_room is None else " and recurrent states"
        printed.append(f"not in it  KV blocks{states} that move: see the plan above")
    return printed


def _expert_lines(experts: ExpertOutlook) -> list[str]:
    model, every = experts.model, len(experts.model.layers) * experts.model.experts
    slots = " and ".join(f"{count:,} in {place} memory" for place, count in experts.slots.items())
    curve = " · ".join(f"{human_bytes(nbytes)} {one.pass_seconds:.3f} s" for nbytes, one in experts.by_bytes.items())
    return [
        f"experts    {every:,} of {human_bytes(model.expert_bytes)}, {model.chosen} of {model.experts} in each of "
        f"{len(model.layers)} layers for a token; slots for {slots}",
        f"found      {experts.demand.hit_rate:.1%} of those that a pass uses; {human_bytes(experts.read_bytes)} read",
        f"known      {experts.demand.how}",
        f"cache      seconds per pass by memory for experts: {curve}",
    ]
