"""`penstock simulate --routing FILE`."""

import argparse

from pipeline.errors import ConfigError, shown
from pipeline.system.sizes import human_bytes
from pipeline.system.table import aligned, print_json
from pipeline.system.written_files import check_writable, writing
from pipeline.tools.commands.progress import Progress
from pipeline.tools.commands.simulate import refuse_others
from pipeline.tools.routing.curve_chart import curve_picture
from pipeline.tools.routing.hit_curves import PER_LAYER, SHOWN, HitCurves, default_slots, hit_curves
from pipeline.tools.routing.recorded_routing import read_routing
from pipeline.tools.routing.replay_routing import Wants

OWN = ("routing", "slots", "picture", "json")


def simulate_routing(options: argparse.Namespace) -> None:
    """Replay the file through caches, and print what they find."""
    refuse_others(options, OWN, "recorded routing")
    if options.picture is not None:
        check_writable(options.picture)
    wants = Wants.of(read_routing(options.routing))
    if not wants.tokens:
        raise ConfigError(f"--routing {options.routing}: holds prompts alone; record a run that decodes some tokens")
    slots = default_slots(wants) if options.slots is None else _slots(options.slots)
    progress = Progress()
    curves = hit_curves(wants, slots, progress.say)
    progress.clear()
    if options.picture is not None:
        _draw(options, curves)
    if options.json:
        print_json(_plain(curves))
    else:
        print(_lines(curves))


def _slots(given: str) -> list[int]:
    try:
        slots = sorted({int(part) for part in given.split(",")})
    except ValueError as error:
        raise ConfigError(f"--slots: need numbers, as 64,128,256; have {shown(given)}") from error
    if slots[0] < 1:
        raise ConfigError(f"--slots: need numbers from 1 on, have {slots[0]}")
    return slots


def _draw(options: argparse.Namespace, curves: HitCurves) -> None:
    try:
        with writing(options.picture) as file:
            file.write(curve_picture(curves).encode())
    except OSError as error:
        raise ConfigError(f"picture {options.picture}: cannot be written: {error.strerror or error}") from error


def _plain(curves: HitCurves) -> dict[str, object]:
    model, wants = curves.wants.model, curves.wants
    return {
        "model": model.name,
        "layers": len(model.layers),
        "experts": model.experts,
        "chosen": model.chosen,
        "expert_bytes": model.expert_bytes,
        "passes": len(wants.unions),
        "tokens": wants.tokens,
        "slots": list(curves.slots),
        "hit_rate": {name: curves.hit_rates(name) for name in SHOWN},
        "read_per_token": {name: [one.read_per_token for one in curves.replays[name]] for name in SHOWN},
    }


def _lines(curves: HitCurves) -> str:
    wants, model = curves.wants, curves.wants.model
    layers, size = len(model.layers), model.expert_bytes
    percents = {(name, "hits"): [f"{rate:.1%}" for rate in curves.hit_rates(name)] for name in SHOWN}
    reads = [one.read_per_token for one in curves.replays["lru"]]
    table = {
        ("slots", ""): [f"{slots:,}" for slots in curves.slots],
        ("memory", ""): [human_bytes(slots * size) for slots in curves.slots],
        **percents,
        ("lru reads", "per token"): [human_bytes(read * size) for read in reads],
    }
    gain = -100 * curves.per_layer_gain
    return "\n".join(
        [
            f"routing    {model.name} · {layers} layers with {model.experts} experts of {human_bytes(size)}, of which "
            f"a token uses {model.chosen}",
            f"recorded   {len(wants.unions):,} passes, {wants.tokens:,} tokens decoded; where a pass uses most experts "
            f"of a layer, as in {wants.streamed.mean():.1%} of all cases, they stream",
            f"no cache   {human_bytes(layers * model.chosen * size)} per token of one request",
            "",
            aligned(table),
            "",
            f"lru        shares its slots out as layers need them: in the mean {gain:+z.1f} points against {PER_LAYER}",
            "pins       are those that this recording uses most, and Belady knows what comes: no run knows that before",
        ]
    )
