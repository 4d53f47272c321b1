"""Reads `config.json` and `generation_config.json` of a Hugging Face folder, as data: nothing that they name is run.

Both spellings are understood, that of transformers 4 (`rope_theta` + `rope_scaling`, `torch_dtype`) and that of
transformers 5 (`rope_parameters`, `dtype`). What is not supported is refused by name.
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import CheckpointError
from pipeline.formats.tensors import WEIGHT_DTYPES
from pipeline.models.described import Described, described
from pipeline.models.families.family import Family
from pipeline.models.families.own import made_layers
from pipeline.models.feed_forwards import Experts
from pipeline.models.frequencies import are_possible
from pipeline.models.json_object import JsonObject
from pipeline.models.latents import LatentAttention
from pipeline.models.layer_settings import read_norm_epsilon
from pipeline.models.layers import Attention, Layer, NormStyle
from pipeline.models.outside import Outside
from pipeline.models.quantizers import read_quantization
from pipeline.models.quantizers.quantization import Quantization
from pipeline.models.rope_settings import FULL, SLIDING, stretched
from pipeline.models.ropes import Rope, rope_length
from pipeline.models.supported import unsupported
from pipeline.system.hub_cache import PREFIX, how_to_fetch
from pipeline.system.small_files import os_errors_named, require_folder

NEED = "a folder with config.json and safetensors files"
MAX_LAYERS = 10_000
MAX_EXPERTS = 1 << 17
"""In all layers together: some five times those of the largest models that are known."""
GENERATION_DEFAULTS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MOST_SHOWN = 120
"""Characters of a scaling that a message repeats: one may have hundreds of factors."""
DTYPES = (*WEIGHT_DTYPES.values(), "double", "float", "half")
"""The names that torch has for them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and the constants of one model; every number has been checked.

    `layer_kinds` say what each layer is made of, and `norm_epsilon` is that of the norm behind them. `dtype` is what
    config.json declares of the checkpoint, None where it declares nothing: the stored tensors decide either way.
    `eos_ids` may be empty. `prefix` stands before the names of the decoder's tensors, unless the checkpoint spells it
    otherwise; `drafting_layers` are stored behind the others, and not computed.
    """

    family: str
    hidden_size: int
    layer_kinds: tuple[Layer, ...]
    outside: Outside
    prefix: str
    drafting_layers: int
    vocabulary_size: int
    norm_epsilon: float
    tied_embeddings: bool
    max_positions: int
    dtype: torch.dtype | None
    eos_ids: tuple[int, ...]
    bos_id: int | None
    quantization: Quantization

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.layer_kinds)

    @property
    def hidden_width(self) -> int:
        """The numbers of the hidden states of a token, which may be several streams."""
        return self.hidden_size * (self.outside.streams.count if self.outside.streams else 1)

    @property
    def norm_style(self) -> NormStyle:
        """That of the norm behind the layers, which is theirs."""
        return self.layer_kinds[-1].norm_style

    @functools.cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The kinds of attention that there are, each once, in the order of their first layers."""
        return tuple(dict.fromkeys(one.mixer for one in self.layer_kinds if isinstance(one.mixer, Attention)))

    @functools.cached_property
    def ropes(self) -> tuple[Rope, ...]:
        """The kinds of rotary embedding that there are, in the same order."""
        return tuple(dict.fromkeys(one.rope for one in self.attentions if one.rope is not None))

    @functools.cached_property
    def expert_kinds(self) -> tuple[Experts, ...]:
        """The kinds of experts that there are, each once; none in a dense model."""
        return tuple(
            dict.fromkeys(one.feed_forward for one in self.layer_kinds if isinstance(one.feed_forward, Experts))
        )

    @property
    def joined_layers(self) -> frozenset[int]:
        """Those that look at positions which a layer before has chosen, so that they need more than its hidden states:
        where it is computed they are, too.
        """
        mixers = enumerate(layer.mixer for layer in self.layer_kinds)
        return frozenset(layer for layer, one in mixers if isinstance(one, LatentAttention) and one.needs_choices)

    @property
    def chosen_experts(self) -> int:
        """How many a token uses, of all layers together."""
        kinds = [one.feed_forward for one in self.layer_kinds]
        return sum(kind.chosen for kind in kinds if isinstance(kind, Experts))

    def rope_length(self, tokens: int) -> int:
        """The length by which rotary frequencies of a sequence of so many tokens are chosen; 0 where none counts."""
        return max((rope_length(rope, tokens) for rope in self.ropes), default=0)


def read_config(folder: Path) -> ModelConfig:
    """Read and check the config of the checkpoint in `folder`.

    Raises `CheckpointError` where a file is missing or holds no JSON object, and `ConfigError` where a value is
    missing, can never work, or asks for something that is not supported.
    """
    return parse_config(read_settings(folder), folder)


def read_settings(folder: Path) -> JsonObject:
    """What config.json of `folder` says, unchecked. Raises `CheckpointError`, with what is there in its place."""
    require_folder(folder, NEED)
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: is missing; {_need_instead(folder)}{how_to_fetch(folder)}")
    return JsonObject.read(path)


def _need_instead(folder: Path) -> str:
    """Two things are common: files of another format, and the folder above the one that is meant."""
    with os_errors_named(folder):
        names = sorted(os.listdir(folder))
    need = f"need {NEED}"
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        return f"{need}; {ggufs[0]} is a GGUF file, which is not read: fetch the model as safetensors"
    models = [name for name in names if name.startswith(PREFIX) or os.path.lexists(folder / name / "config.json")]
    if models:
        return f"{need}, as {folder / models[0]}{f' and {len(models) - 1} more there' if models[1:] else ''}"
    return need


def parse_config(settings: JsonObject, folder: Path | None = None) -> ModelConfig:
    """Check the settings of a config, which may be in no `folder`. Raises as `read_config`."""
    found = described(settings)
    settings = found.text
    for one in (found.whole, settings):
        _refuse_unsupported(one)

    layers = _layers(settings, found.family)
    vocabulary_size = settings.count("vocab_size")
    model = ModelConfig(
        family=found.name,
        hidden_size=settings.count("hidden_size"),
        layer_kinds=layers,
        outside=found.family.outside(settings),
        prefix=found.prefix,
        drafting_layers=settings.index("num_nextn_predict_layers", default=0),
        vocabulary_size=vocabulary_size,
        norm_epsilon=read_norm_epsilon(settings),
        tied_embeddings=found.tied_embeddings,
        max_positions=_max_positions(settings, layers),
        dtype=_declared_dtype(found.saying("dtype", "torch_dtype")),
        eos_ids=_token_ids(folder, found, "eos_token_id", vocabulary_size),
        bos_id=next(iter(_token_ids(folder, found, "bos_token_id", vocabulary_size)), None),
        quantization=read_quantization(found.saying("quantization_config", "compression_config"), folder),
    )
    _refuse_impossible(settings, model)
    return model


def read_generation_defaults(folder: Path) -> dict[str, float | int | bool]:
    """The sampling defaults that `generation_config.json` states: those of `GENERATION_DEFAULTS` that are not null.

    Empty where the folder has no such file. `SamplingParameters.from_arguments` checks the ranges and reads
    `do_sample`. Raises `CheckpointError` for a file that holds no JSON object, `ConfigError` for what is no number.
    """
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return {}
    settings = JsonObject.read(path)
    present = [key for key in GENERATION_DEFAULTS if settings.get(key) is not None]
    return {key: settings.flag(key) if key == "do_sample" else settings.number(key) for key in present}


def _refuse_unsupported(settings: JsonObject) -> None:
    if not settings.flag("is_causal", default=True):  # it looks ahead, as models do that make no text
        raise unsupported(settings, "is_causal")
    if settings.get("use_bidirectional_attention") not in (None, False, "vision"):  # which for text is None
        raise unsupported(settings, "use_bidirectional_attention")


def _layers(settings: JsonObject, family: Family) -> tuple[Layer, ...]:
    """Return what each layer is made of. What the family does not follow is refused."""
    layers = made_layers(family, settings, settings.count("num_hidden_layers", at_most=MAX_LAYERS))
    kinds = [SLIDING if isinstance(one.mixer, Attention) and one.mixer.window else FULL for one in layers]
    if settings.get("layer_types") and "layer_types" not in family.follows and settings.get("layer_types") != kinds:
        raise unsupported(settings, "layer_types")
    if (total := sum(one.feed_forward.count for one in layers if isinstance(one.feed_forward, Experts))) > MAX_EXPERTS:
        key = settings.first("n_routed_experts", "num_local_experts", "num_experts")
        raise settings.error(key, f"at most {MAX_EXPERTS} experts in all layers together", total)
    asked = [key for key in ("attention_bias", "mlp_bias") if settings.flag(key)]
    asked += ["per_layer_config"] * bool(settings.section("per_layer_config"))
    for key in asked:
        if key not in family.follows:
            raise unsupported(settings, key)
    return layers


def _max_positions(settings: JsonObject, layers: Sequence[Layer]) -> int:
    """Return what the rope makes of it that config.json says; where several are, they say of the whole."""
    stated = settings.count("max_position_embeddings")
    ropes = {one.mixer.rope for one in layers if isinstance(one.mixer, Attention) and one.mixer.rope}
    return min((stretched(stated, rope.scaling) for rope in ropes), default=stated)


def _refuse_impossible(settings: JsonObject, model: ModelConfig) -> None:
    """Refuse numbers that no rotary frequencies follow from."""
    for rope in model.ropes:
        if not are_possible(rope, model.max_positions):
            shown = str(rope.scaling)[:MOST_SHOWN]
            need = f"a base from which frequencies above 0 follow, for heads of {rope.channels} channels with {shown}"
            raise settings.error("rope_theta", need, rope.theta)


def _declared_dtype(settings: JsonObject) -> torch.dtype | None:
    for key in ("dtype", "torch_dtype"):
        name = settings.text(key, "auto").removeprefix("torch.")
        if name in DTYPES:
            declared: torch.dtype = getattr(torch, name)
            return declared
        if name != "auto":
            raise unsupported(settings, key)
    return None


def _token_ids(folder: Path | None, found: Described, key: str, vocabulary_size: int) -> tuple[int, ...]:
    """`generation_config.json` speaks for a special token where it names one, else `config.json` does."""
    settings, path = found.saying(key), None if folder is None else folder / "generation_config.json"
    if path is not None and path.exists() and (generation := JsonObject.read(path)).get(key) is not None:
        settings = generation
    return settings.token_ids(key, vocabulary_size)
