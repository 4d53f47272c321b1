"""The times of a layer, as the options of `penstock simulate` give them."""

import argparse
import dataclasses
import math
from typing import Any

from pipeline.errors import ConfigError
from pipeline.tools.commands.simulate import LAYERS, MILLISECONDS
from pipeline.tools.commands.values import option_of
from pipeline.tools.simulation.derive import derive_timings, find_shapes
from pipeline.tools.simulation.timings import LayerTimings

MS = 1000.0
RATES = ("disk_gbps", "h2d_gbps", "tflops", "batch_tokens")
LAYER_SECONDS = ("attn", "ffn", "attn_io", "ffn_io", "attn_disk", "ffn_disk", "check_seconds", "kv_seconds")


def timings_from(options: argparse.Namespace, shares: int = 1) -> LayerTimings:
    """The times of one layer; of a model's, with one share in so many of the tokens, but at least one.

    Raises ConfigError for a number that means nothing, and for two ways to say the same.
    """
    milliseconds = {name: getattr(options, name) for name in (*MILLISECONDS, "disk_attn_ms", "disk_ffn_ms")}
    given = [name for name, value in milliseconds.items() if value is not None]
    for name in (*given, "kv_ms", "sync_ms", "jitter"):
        check_number(options, name)
    rates = [name for name in (*RATES, "memory_gbps") if getattr(options, name) is not None]
    common = {
        "check_seconds": options.sync_ms / MS,
        "kv_seconds": options.kv_ms / MS,
        "jitter": options.jitter,
        "seed": options.seed,
    }
    if options.model is not None:
        if given:
            raise ConfigError(f"{option_of(given[0])}: --model derives the timings; give one or the other")
        if missing := [option_of(name) for name in RATES if name not in rates]:
            raise ConfigError(f"--model: need {', '.join(missing)} too, to derive the timings")
        for name in rates:
            check_number(options, name, above=True)
        shapes = find_shapes(options.model)
        derived = derive_timings(
            shapes,
            **{name: getattr(options, name) for name in rates if name != "batch_tokens"},
            batch_tokens=max(1, options.batch_tokens // shares),
        )
        return dataclasses.replace(derived, layers=options.layers or len(shapes), **common)
    if rates:
        raise ConfigError(f"{option_of(rates[0])}: is for --model, which is missing")
    seconds = {
        name: (MILLISECONDS.get(name, 0.0) if value is None else value) / MS for name, value in milliseconds.items()
    }
    if not (seconds["attn_ms"] or seconds["ffn_ms"]):
        raise ConfigError("--attn-ms, --ffn-ms: need one above 0, have 0 for both: there is nothing to overlap with")
    times: dict[str, Any] = dict(zip(LAYER_SECONDS[: len(seconds)], seconds.values(), strict=True))
    return LayerTimings(layers=options.layers or LAYERS, **times, **common)


def check_number(options: argparse.Namespace, name: str, *, above: bool = False) -> None:
    """Raise ConfigError unless an option is a number from 0 on, or above 0."""
    value = getattr(options, name)
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise ConfigError(f"{option_of(name)}: need a finite number {'above 0' if above else 'from 0'}, have {value}")
