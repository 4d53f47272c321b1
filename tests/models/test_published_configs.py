"""Published models by their config.json: each is read, and has as many parameters as its publisher says, or refused."""

import math

import pytest
from support.expert_configs import WITH_EXPERTS
from support.latent_configs import LATENT
from support.published_configs import ACCEPTED
from support.refused_configs import REFUSED

from pipeline.errors import ConfigError
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import parse_config
from pipeline.models.specs import expert_specs, group_specs

READ = {**ACCEPTED, **WITH_EXPERTS, **LATENT}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_and_has_all_parameters(name: str) -> None:
    settings, thousand_millions = READ[name]
    model = parse_config(JsonObject("config.json", {"max_position_embeddings": 131072, **settings}))
    groups = group_specs(model) | expert_specs(model)
    shapes = {spec.name: spec.shape for specs in groups.values() for spec in specs}
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(thousand_millions, rel=0.004)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_the_key_that_asks_for_too_much(name: str) -> None:
    settings, key = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"^config\.json: (.*: )?({key}): need "):
        parse_config(JsonObject("config.json", {"max_position_embeddings": 131072, **settings}))
