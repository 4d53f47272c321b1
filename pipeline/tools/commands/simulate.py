"""`penstock simulate`: its options."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.tools.commands.command import Command
from pipeline.tools.commands.options import MODEL_HELP
from pipeline.tools.commands.values import option_of

LAYERS = 80
MILLISECONDS = {"attn_ms": 80.0, "ffn_ms": 120.0, "attn_io_ms": 100.0, "ffn_io_ms": 100.0}
"""The figures of the analysis that the policies come from, of a 70B model: its layers, and what one of them takes."""


def add_simulate(commands: Any) -> None:
    """Add the command's parser to `commands`, which is what `add_subparsers` gave."""
    parser = commands.add_parser(
        "simulate",
        help="the prefetch policies or several sections on virtual time, or caches of experts over recorded routing",
        description="Run the production actors on virtual time and compare what each prefetch policy makes of it; or, "
        "with --sections, what several devices or nodes do; or, with --routing, replay what a model's routers chose "
        "through caches of other sizes and policies.",
    )
    which = parser.add_mutually_exclusive_group()
    seven = "history1, history, current, stage1, stage2, stage3, backpressure"
    which.add_argument("--policy", metavar="P", help=f"{seven}, or yours as MODULE:NAME")
    which.add_argument("--all", action="store_true", help="all seven; the default")
    which.add_argument(
        "--routing", type=Path, metavar="FILE", help="of penstock trace-routing: what caches of experts would find"
    )
    which.add_argument(
        "--sections", "--shards", type=int, metavar="N", help="a model cut over 1, 2, 4, ... to N devices or nodes"
    )
    _add_timings(parser)
    _add_model(parser)
    _add_settings(parser)
    _add_sections(parser)
    routing = parser.add_argument_group("with --routing")
    routing.add_argument("--slots", metavar="N,N,...", help="sizes of the cache, in experts; default shares of all")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="with --sections or --routing: write an SVG")
    parser.add_argument("--json", action="store_true", help="one object, or a list")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="with --policy: write what happened, for Perfetto")
    parser.set_defaults(command=Command("simulate_policies", "simulate_policies", loads_torch=False))


def refuse_others(options: argparse.Namespace, own: Collection[str], what: str) -> None:
    """Raise ConfigError where an option is given that is not one of those that `what` knows."""
    commands = argparse.ArgumentParser().add_subparsers()
    add_simulate(commands)
    for name, default in vars(commands.choices["simulate"].parse_args([])).items():
        if name not in (*own, "command") and getattr(options, name) != default:
            raise ConfigError(f"{option_of(name)}: has no meaning for {what}; leave it out")


def _add_timings(parser: argparse.ArgumentParser) -> None:
    times = parser.add_argument_group("timings of one layer, in milliseconds")
    times.add_argument("--layers", type=int, metavar="N", help=f"default {LAYERS}, or the model's")
    for name, what in (
        ("attn", "compute an attention"),
        ("ffn", "compute an ffn"),
        ("attn-io", "move an attn group to the device, from the disk unless that is a hop of its own"),
        ("ffn-io", "the same of an ffn group"),
    ):
        default = MILLISECONDS[f"{name.replace('-', '_')}_ms"]
        times.add_argument(f"--{name}-ms", type=float, metavar="MS", help=f"{what}; default {default:g}")
    times.add_argument("--disk-attn-ms", type=float, metavar="MS", help="read an attn group, as a hop of its own")
    times.add_argument("--disk-ffn-ms", type=float, metavar="MS", help="read an ffn group, as a hop of its own")
    times.add_argument("--kv-ms", type=float, default=0.0, metavar="MS", help="move a layer's KV blocks; default 0")
    times.add_argument("--sync-ms", type=float, default=5.0, metavar="MS", help="one blocking check; default 5")
    times.add_argument("--jitter", type=float, default=0.0, metavar="CV", help="coefficient of variation; default 0")
    times.add_argument("--seed", type=int, default=0, help="of the jitter; default 0")


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("timings of a model, in place of those")
    model.add_argument("--model", metavar="MODEL", help=f"{MODEL_HELP}, or a preset: llama-3-70b, qwen2.5-7b, ...")
    model.add_argument("--disk-gbps", type=float, metavar="X", help="1e9 bytes per second from the disk")
    model.add_argument("--h2d-gbps", type=float, metavar="Y", help="1e9 bytes per second to the device")
    model.add_argument("--tflops", type=float, metavar="Z", help="1e12 operations per second on the device")
    model.add_argument("--memory-gbps", type=float, metavar="M", help="the same from its own memory; default endless")
    model.add_argument("--batch-tokens", type=int, metavar="B", help="tokens of one pass")


def _add_sections(parser: argparse.ArgumentParser) -> None:
    sections = parser.add_argument_group("with --sections")
    sections.add_argument(
        "--hop-seconds", type=float, default=0.0, metavar="S", help="from section to section; default 0"
    )
    sections.add_argument(
        "--stays", type=float, default=0.0, metavar="X", help="share of all weights that a section keeps"
    )
    sections.add_argument("--shared-disk", action="store_true", help="one disk for all sections, not one for each")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    settings = parser.add_argument_group("the line")
    settings.add_argument("--depth", type=int, metavar="D", help="layers that history1 and the stages ask ahead")
    settings.add_argument("--gpu-groups", type=int, default=10, metavar="G", help="groups on the device; default 10")
    settings.add_argument("--host-groups", type=int, metavar="H", help="groups in host memory; default as many")
    settings.add_argument("--queue", type=int, metavar="Q", help="messages before each actor; default as many")
    settings.add_argument("--micro-batches", type=int, metavar="M", help="parts of a pass for stage3 and backpressure")
    settings.add_argument("--passes", type=int, default=1, metavar="P", help="default 1")
