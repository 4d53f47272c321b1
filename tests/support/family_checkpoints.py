"""Checkpoints of tiny models, one of each family and variant."""

import functools
from pathlib import Path

from support import tiny_models
from support.family_models import CASES


def save_family(name: str, folder: Path) -> None:
    """Save the model of a family, in three shards, or of a variant of Llama."""
    if name in CASES:
        case = CASES[name]
        model = tiny_models.randomised(case.config(), seed=sum(name.encode()), deviation=case.deviation)
        tiny_models.save_model(model, folder, shards=3, stacked=case.stacked)
    else:
        tiny_models.save(name, folder)


@functools.cache
def family_checkpoint(root: Path, name: str) -> Path:
    """The folder below `root` with the checkpoint of that name, made when it is first asked for."""
    save_family(name, root / name)
    return root / name
