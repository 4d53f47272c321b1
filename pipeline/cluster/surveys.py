"""What a node finds before it opens a section: which model, with which code; and what it could do with some layers."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import open_checkpoint
from pipeline.checkpoints.checkpoint_digest import checkpoint_digest
from pipeline.cluster.section_calls import Offer, Survey
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.errors import ConfigError
from pipeline.generation.blueprint import Drawing
from pipeline.generation.drawn_sections import draw_up_section, shares_of
from pipeline.generation.pass_rates import PassRates
from pipeline.models.model_config import read_config
from pipeline.reading.reading_choice import choose_reading

SHOWN_DIGITS = 12


def survey(folder: Path, settings: Config) -> tuple[Mapping[str, str], tuple[int, ...]]:
    """What must be alike on all nodes, by name; and the bytes of each layer, of which the last is the head.

    Raises PenstockError where the model cannot be opened.
    """
    model = read_config(folder)
    with open_checkpoint(folder) as checkpoint:
        digest = checkpoint_digest(checkpoint)
        layer_bytes = Drawing.of(model, checkpoint, settings).groups.layer_bytes
    device = open_device(settings.device)
    try:
        kind = device.torch_device.type
    finally:
        device.free()
    told = {
        "checkpoint": digest[:SHOWN_DIGITS],
        "version of penstock": code_digest()[:SHOWN_DIGITS],
        "version of torch": torch.__version__,
        "device": kind,
    }
    return told, tuple(layer_bytes)


def code_digest() -> str:
    """Tells versions apart, those too that have one number, as sources have that are being worked on."""
    digest, packages = hashlib.blake2b(digest_size=32), Path(__file__).parents[2]
    for path in sorted(path for name in ("actors", "pipeline") for path in (packages / name).rglob("*.py")):
        digest.update(str(path.relative_to(packages)).encode() + path.read_bytes())
    return digest.hexdigest()


def check_alike(surveys: Sequence[Survey], folder: Path) -> None:
    """Raises ConfigError where nodes differ, naming each with what it has."""
    for name in surveys[0].told:
        found = [one.told[name] for one in surveys]
        if len(set(found)) > 1:
            each = "; ".join(f"section {at} on node {one.node} {one.told[name]}" for at, one in enumerate(surveys))
            what = f"the same files at {folder}" if name == "checkpoint" else f"the same {name}"
            raise ConfigError(f"cluster: need {what} on all nodes, have of {name} {each}; make them alike")


def offer(folder: Path, settings: Config, layers: Collection[int], *, fitting: bool) -> Offer:
    """What a section with these layers could do; where it must be `fitting`, ConfigError says what it lacks."""
    device, model = open_device(settings.device), read_config(folder)
    try:
        with open_checkpoint(folder, direct=settings.reading.get("direct", True)) as checkpoint:
            reading = choose_reading(
                checkpoint.files, settings.reading, beside=device.shares_cores, has_experts=bool(model.expert_kinds)
            )
            if fitting:
                drawn = draw_up_section(model, checkpoint, settings, device, layers)
            else:
                drawn = Drawing.of(model, checkpoint, settings).drawn(device, layers)
            link = device.link_bytes_per_second() if drawn.plans.moved.sent else None
            rates = PassRates(reading.bytes_per_second, link)
            plan = drawn.at_rates(rates).plan
            (share,) = shares_of([drawn], rates)
            return Offer(share, plan.kv_room.tokens, plan.pass_size.tokens)
    finally:
        device.free()
