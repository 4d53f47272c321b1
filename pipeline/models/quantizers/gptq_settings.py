"""GPTQ as AutoGPTQ, GPTQModel and optimum write it."""

import re

from pipeline.formats.dense import Dense
from pipeline.formats.gptq import Gptq
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import (
    EMBEDDING,
    HEAD_MODULE,
    LINEAR,
    Quantization,
    Rule,
    compiled,
    group_columns,
    refused,
)

VERSIONS = {"gptq": 1, "gptq_v2": 2}
"""How zero points are stored, by checkpoint_format: the first version takes one away from each."""


def read(settings: JsonObject) -> Quantization:
    """The head is left out unless `lm_head` is true. Raises ConfigError."""
    found = _format(settings)
    linear = [(re.compile(rf".*\.{re.escape(name)}$"), found) for name in _modules(settings)]
    linear = linear or [(re.compile(LINEAR), found)]
    head = [] if settings.flag("lm_head") else [(re.compile(f"{HEAD_MODULE}$"), Dense())]
    return Quantization((*_overrides(settings), (re.compile(EMBEDDING), Dense()), *head, *linear))


def _modules(settings: JsonObject) -> list[str]:
    """The ends of the names of those that are quantised, where not all are: lists of them, as they were quantised."""
    key = "modules_in_block_to_quantize"
    lists = settings.get(key) or []
    if not isinstance(lists, list) or not all(isinstance(names, list) for names in lists):
        raise settings.error(key, "lists of names of modules", lists)
    return [str(name) for names in lists for name in names]


def _overrides(settings: JsonObject) -> list[Rule]:
    """GPTQModel sets some modules apart by patterns: "-:" leaves them out, else they have settings of their own."""
    rules: list[Rule] = []
    for pattern, changes in settings.sections("dynamic").items():
        found = Dense() if pattern.startswith("-:") else _format(changes.with_absent(settings.values))
        rules.append((compiled(settings, "dynamic", pattern.removeprefix("-:").removeprefix("+:")), found))
    return rules


def _format(settings: JsonObject) -> Gptq:
    key = settings.first("checkpoint_format", "format")
    version = VERSIONS.get(settings.text(key, "gptq").lower())
    if version is None:
        raise refused(settings, key)
    if settings.get("bits") not in (4, 8):
        raise refused(settings, "bits")
    return Gptq(bits=settings.count("bits"), group=group_columns(settings), version=version)
