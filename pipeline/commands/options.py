"""Options that several commands share, and the settings of `Config` that they stand for."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = ("gpu_groups", "device", "dtype", "policy", "gpu_memory", "host_memory", "kv_disk")


def add_settings(parser: argparse.ArgumentParser, gpu_groups: int = 4) -> None:
    """How the model is run."""
    parser.add_argument(
        "--gpu-groups",
        type=int,
        default=gpu_groups,
        metavar="N",
        help=f"weight groups on the device; default {gpu_groups}",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cpu-copy, cuda; default auto")
    parser.add_argument(
        "--dtype", default="auto", help="compute in float32, float16, bfloat16; default the checkpoint's"
    )


def add_memory(parser: argparse.ArgumentParser) -> None:
    """What the model may hold."""
    parser.add_argument("--gpu-memory", metavar="SIZE", help="stay within 10GiB, 80%%, ... of the device's memory")
    parser.add_argument(
        "--host-memory", metavar="SIZE", help="the same for host memory; on the CPU it holds everything"
    )
    parser.add_argument("--no-residency", action="store_true", help="let every weight group move in every pass")
    parser.add_argument("--kv-disk", type=Path, metavar="FOLDER", help="where KV blocks go that have no room in memory")


def add_trace(parser: argparse.ArgumentParser) -> None:
    """Where the trace goes."""
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what every actor did, for Perfetto and report"
    )


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `Model.open` is given: the options that the command has and the user has set."""
    told = {name: getattr(options, name, None) for name in SETTINGS}
    settings = {name: value for name, value in told.items() if value is not None}
    return {**settings, "residency": False} if getattr(options, "no_residency", False) else settings


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """The same settings as a command line."""
    told = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "residency"]
    return told if settings.get("residency", True) else [*told, "--no-residency"]
