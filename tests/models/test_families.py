"""A family is data and composition: what follows from that for all of them."""

import re

import pytest

from pipeline.errors import ConfigError
from pipeline.models.families import FAMILIES
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import parse_config
from pipeline.models.supported import SUPPORTED

TOLD = {
    "deepseek_v2": {"num_experts_per_tok": 4},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "glm4_moe": {"head_dim": 4},
}
"""What has to be said, since what a family assumes is refused, or does not go with these sizes."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_named_in_refusals_and_reads_a_config_of_sizes_alone(name: str) -> None:
    assert name in re.findall(r"[\w.]+", SUPPORTED)
    sizes = {"hidden_size": 64, "intermediate_size": 24, "num_attention_heads": 32, "num_hidden_layers": 3}
    settings = {"model_type": name, "vocab_size": 7, **sizes, **TOLD.get(name, {})}
    config = parse_config(JsonObject("config.json", settings))
    assert (config.family, config.layers) == (name, 3)
    assert parse_config(JsonObject("config.json", {**settings, "rope_parameters": None})) == config
    for key in ("attention_bias", "mlp_bias"):
        asked = JsonObject("config.json", {**settings, key: True})
        if key in FAMILIES[name].follows:
            assert parse_config(asked).layers == 3
        else:
            with pytest.raises(ConfigError, match=f"{key}: need a model that is supported"):
                parse_config(asked)
