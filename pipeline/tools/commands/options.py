"""Options that several commands share. Those that say how a model is run are all settings of `Config`."""

import argparse
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.system.hub_cache import find_checkpoint
from pipeline.tools.commands.parser import Parser
from pipeline.tools.commands.values import option_of

MODELS = ("model", "deep")
"""Under these names commands take models: a path, an id of the Hugging Face cache, or the bundled one."""
MODEL_HELP = "a checkpoint folder, the id of a model that was fetched with hf download, bundled, or bundled-int4"
OPTIONS = {
    "device": ("DEVICE", "auto, cpu, cpu-copy, cuda, cuda:1, ...; default auto"),
    "devices": ("DEVICES", "several, of which each computes some layers: cuda:0,cuda:1, or all"),
    "cluster": ("ADDRESS", "let the nodes of a Ray cluster compute: auto, or its HOST:PORT"),
    "sections": ("N", "on a cluster, how many nodes share the layers; default all"),
    "dtype": ("DTYPE", "compute in float32, float16, bfloat16; default the checkpoint's"),
    "gpu_memory": ("SIZE", "stay within 10GiB, 80%%, ... of the device's memory"),
    "host_memory": ("SIZE", "the same for host memory; on the CPU it holds everything"),
    "gpu_groups": ("N", "weight groups on the device"),
    "context_tokens": ("N", "prompt plus new tokens that one request may have"),
    "kv_tokens": ("N", "prompt and answer tokens of all running requests; default by what is free"),
    "kv_disk": ("FOLDER", "where KV blocks and states go that have no room in memory"),
    "policy": ("P", "prefetch policy: one of the seven, or yours as MODULE:NAME"),
}
"""Settings that have an option of their own: what stands for the value, and the help."""


class Setting(argparse.Action):
    """Adds to `settings` what --set says, or what follows `const`, the beginning of what --set would say."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Set the setting; of values that are given twice, the last counts."""
        from pipeline.tools.commands.settings import with_setting

        text = f"{self.const or ''}{values or ''}"
        try:
            namespace.settings = with_setting(namespace.settings, text, namespace.own_settings)
        except ConfigError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def add_settings(parser: Parser, own: Collection[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
    """Add the options that say how the model is run.

    `own` are settings that the command sets itself, `defaults` those that it starts from in `options.settings`.
    """
    parser.set_defaults(settings=dict(defaults or {}), own_settings=own)
    parser.appendix = partial(_table, own, dict(defaults or {}))
    group = parser.add_argument_group("how the model is run", "Of settings that are given twice, the last counts.")
    add = partial(group.add_argument, action=Setting, dest="settings", default=argparse.SUPPRESS)
    for name, (metavar, what) in OPTIONS.items():
        if name not in own:
            add(option_of(name), const=f"{name}=", metavar=metavar, help=what)
    if "residency" not in own:
        add("--no-residency", const="residency=no", nargs=0, help="let every weight group move in every pass")
    if "cluster" not in own:
        add("--ray", const="cluster=auto", nargs=0, help="the same as --cluster auto")
        add("--shards", const="sections=", metavar="N", help="the same as --sections")
    if "queues" not in own:
        add("--queue", const="queues.", metavar="ACTOR=N", help="messages that may wait in front of disk_reader, ...")
    add("--set", metavar="NAME=VALUE", help="any other setting, from the list below; as often as you like")


def _table(own: Collection[str], defaults: Mapping[str, Any]) -> str:
    from pipeline.tools.commands.settings import settings_table

    return settings_table(own, defaults)


def find_models(options: argparse.Namespace) -> argparse.Namespace:
    """Put folders in the place of ids. Raises CheckpointError for those that the cache has not."""
    for name in MODELS:
        value = getattr(options, name, None)
        if isinstance(value, Path):
            setattr(options, name, find_checkpoint(value))
        elif isinstance(value, list):
            setattr(options, name, [find_checkpoint(one) for one in value])
    return options


def add_trace(parser: argparse._ActionsContainer, more: str = "") -> None:
    """Add the option that names the trace; `more` is what else there is to say of it."""
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help=f"write what every actor did, for Perfetto and report{more}"
    )
