"""The models that a command line names: by a path, by an id of the Hugging Face cache, or as the bundled one."""

import argparse
from pathlib import Path

from pipeline.system.hub_cache import find_checkpoint

MODELS = ("model", "deep")
"""Under these names commands take them."""
MODEL_HELP = "a checkpoint folder, the id of a model that was fetched with hf download, or bundled"


def find_models(options: argparse.Namespace) -> argparse.Namespace:
    """The same options with folders in the place of ids. Raises CheckpointError for those that the cache has not."""
    for name in MODELS:
        value = getattr(options, name, None)
        if isinstance(value, Path):
            setattr(options, name, find_checkpoint(value))
        elif isinstance(value, list):
            setattr(options, name, [find_checkpoint(one) for one in value])
    return options
