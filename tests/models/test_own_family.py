"""Families that packages bring by an entry point."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.model_configs import LLAMA_31_8B, changed

from pipeline.errors import ConfigError
from pipeline.models.families import llama
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import ModelConfig, parse_config

OWN = changed(LLAMA_31_8B, model_type="own", architectures=["OwnForCausalLM"])


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str, **names: object) -> None:
    """A package whose module `own_module` has these names, and whose entry points these lines say."""
    module = types.ModuleType("own_module")
    module.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "own_module", module)
    (folder / "own-1.dist-info").mkdir()
    (folder / "own-1.dist-info" / "entry_points.txt").write_text("\n".join(("[penstock.families]", *lines)))
    monkeypatch.syspath_prepend(folder)


def parsed(settings: Any) -> ModelConfig:
    return parse_config(JsonObject("config.json", settings))


def test_a_family_and_what_is_around_it_may_come_from_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="model_type: need a model that is supported"):
        parsed(OWN)
    family = Family(name="own", architecture="OwnForCausalLM", absent={}, layers=llama.layers)
    around = Wrapper(name="seeing", architecture="SeeingOwn", texts=("own",), tied=False)
    lines = ("own = own_module:family", "seeing = own_module:around")
    installed(monkeypatch, tmp_path, *lines, family=family, around=around)
    alone = parsed(OWN)
    assert (alone.family, alone.layer_kinds) == ("own", parsed(LLAMA_31_8B).layer_kinds)
    nested = parsed({"model_type": "seeing", "architectures": ["SeeingOwn"], "text_config": OWN})
    assert nested.layer_kinds == alone.layer_kinds
    with pytest.raises(ConfigError, match="architectures: need a model"):
        parsed({**OWN, "architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("own = own_module:missing",), r"own_module:missing cannot be loaded: AttributeError"),
        (("own = own_module.nothing:family",), "own_module.nothing:family cannot be loaded: ModuleNotFoundError"),
        (
            ("own = own_module:no_family",),
            "need a Family or Wrapper whose name is 'own', have 'str' as own_module",
        ),
        (("own = own_module:family",), "need a Family or Wrapper whose name is 'own', have 'llama'"),
        (("own = own_module:family", "own = own_module:no_family"), "need one, have own_module:.*; remove a package"),
    ],
)
def test_what_is_wrong_with_it_is_named(
    lines: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, tmp_path, *lines, family=llama.FAMILY, no_family="")
    with pytest.raises(ConfigError, match=f"entry point 'own' of penstock.families: {message}"):
        parsed(OWN)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda settings, count: None, "failed: TypeError"),
        (lambda settings, count: settings.values["nothing"], r"failed: KeyError\('nothing'\)"),
        (lambda settings, count: llama.layers(settings, count - 1), r"need 32 of Layer, have \(Layer"),
        (lambda settings, count: range(count), r"need 32 of Layer, have \(0, 1"),
    ],
)
def test_layers_that_it_cannot_make_are_named(
    layers: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family(name="own", architecture="OwnForCausalLM", absent={}, layers=layers)
    around = Wrapper(name="seeing", architecture="SeeingOwn", texts=(), tied=False)
    lines = ("own = own_module:family", "seeing = own_module:around")
    installed(monkeypatch, tmp_path, *lines, family=family, around=around)
    with pytest.raises(ConfigError, match=f"family 'own': layers:? {message}"):
        parsed(OWN)
    with pytest.raises(ConfigError, match="need a Wrapper with the names of families as texts"):
        parsed({"model_type": "seeing", "text_config": OWN})
