"""The parts of a model: what its weight groups are called, and what follows from a name.

Here and in the tables of the families alone a name has a meaning. To everything else a part is data: to be looked up,
counted and printed.
"""

import re
from collections.abc import Iterable

ATTN, FFN, HEAD, EMBED, EXPERT = "attn", "ffn", "head", "embed", "expert"
TABLE = "table"
"""What says which experts of a layer a token uses: host memory keeps it, and it never moves."""
LAYER_PARTS = (ATTN, FFN)
"""Those of a layer, in compute order."""
KINDS = (*LAYER_PARTS, HEAD)
"""Groups of one kind are computed alike."""
MULTIPLIED_TOGETHER = QKV, GATE_UP = ("q", "k", "v"), ("gate", "up")
"""Matrices that the same rows are multiplied by, by their short names."""
EMBED_KEY = (-1, EMBED)
"""The embedding table, which is never streamed: a pass fetches the rows that it needs."""

PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.", "model.model.", "")
"""What stands before the decoder's tensors in checkpoints: alone, inside a model that sees, as older versions of
transformers named that, and as what was saved without its head."""
TEXT_PREFIX, NESTED_PREFIX = PREFIXES[:2]
LONGEST_PREFIX = re.compile("|".join(re.escape(one) for one in sorted(PREFIXES, key=len, reverse=True)))


def bare_name(name: str) -> str:
    """Return what stands behind the prefix."""
    return LONGEST_PREFIX.sub("", name, count=1)


def used_prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `PREFIXES` that these names have."""
    used = {name.removesuffix(bare_name(name)) for name in names}
    return tuple(prefix for prefix in PREFIXES if prefix in used)


def spellings(name: str) -> tuple[str, ...]:
    """The names under which a tensor or module of this name may be stored, its own first."""
    bare = bare_name(name)
    return tuple(dict.fromkeys((name, *[prefix + bare for prefix in PREFIXES])))


def gives_logits(part: str) -> bool:
    """Whether it is a slice of the head."""
    return kind_of(part) == HEAD


def attends(part: str) -> bool:
    """Whether its computation needs the KV blocks of its layer."""
    return part == ATTN


def head_slice(index: int) -> str:
    """What a slice of the head is called: its output matrix travels in several groups."""
    return f"{HEAD}.{index}"


def expert(index: int) -> str:
    """What one of the experts of a layer is called: each is a weight group, which travels when it is needed."""
    return f"{EXPERT}.{index}"


def expert_index(part: str) -> int:
    """Which of the experts of its layer it is."""
    return int(part.partition(".")[2])


def kind_of(part: str) -> str:
    """The one of `KINDS` that a part is of, if it is of any."""
    return part.partition(".")[0]
