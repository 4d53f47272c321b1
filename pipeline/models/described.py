"""Which family a config.json is of, and which of its objects describes the text model."""

from dataclasses import dataclass

from pipeline.formats.parts import NESTED_PREFIX
from pipeline.models.families import FAMILIES, WRAPPERS
from pipeline.models.families.family import Family, Wrapper
from pipeline.models.families.own import own_family
from pipeline.models.json_object import JsonObject
from pipeline.models.supported import unsupported


@dataclass(frozen=True, slots=True)
class Described:
    """A text model, alone or inside a `wrapper`.

    `text` says what it is made of, with what its family assumes. `whole` is all that config.json says: of some keys it
    speaks first, as in transformers. Of a text model alone that is the same.
    """

    family: Family
    text: JsonObject
    whole: JsonObject
    wrapper: Wrapper | None

    @property
    def name(self) -> str:
        """The `model_type` that config.json names."""
        return self.wrapper.name if self.wrapper else self.family.name

    @property
    def architecture(self) -> str:
        """The class that goes with it."""
        return self.wrapper.architecture if self.wrapper else self.family.architecture

    @property
    def prefix(self) -> str:
        """Return what stands before the names of the decoder's tensors."""
        return NESTED_PREFIX if self.wrapper else self.family.prefix

    def saying(self, *keys: str) -> JsonObject:
        """The object that speaks of these keys."""
        return self.whole if any(self.whole.get(key) is not None for key in keys) else self.text

    @property
    def tied_embeddings(self) -> bool:
        """Whether the embedding stands in for an output matrix that is not stored.

        What is around the model says so; transformers ignores a text_config that says otherwise.
        """
        if self.wrapper is None or self.whole.get("tie_word_embeddings") is not None:
            return self.whole.flag("tie_word_embeddings")
        return self.wrapper.tied or self.text.flag("tie_word_embeddings")


def described(settings: JsonObject) -> Described:
    """Find the family. Raises ConfigError for one that is not supported."""
    found = _named(settings)
    if isinstance(found, Family):
        text = settings.with_absent(found.absent)
        return Described(found, text, text, None)
    text = settings.section("text_config")
    if not text:
        raise settings.error("text_config", "a JSON object that describes the text model", settings.get("text_config"))
    text = text.with_absent({"model_type": found.texts[0]})
    if text.text("model_type") not in found.texts:
        raise unsupported(text, "model_type")
    family = _family(text.text("model_type"))
    if not isinstance(family, Family):
        raise unsupported(text, "model_type")
    for key in found.ignored:  # whether the model was trained with it cannot be told
        if text.get(key) is not None:
            raise unsupported(text, key)
    return Described(family, text.with_absent(family.absent), settings, found)


def _named(settings: JsonObject) -> Family | Wrapper:
    """The family by `model_type`, else by the class; either may be absent."""
    stated = settings.get("architectures")
    classes = {_plain(str(name)) for name in (stated if isinstance(stated, list) else [stated])}
    if name := settings.text("model_type"):
        found = _family(name)
    else:
        known: list[Family | Wrapper] = [*FAMILIES.values(), *WRAPPERS.values()]
        found = next((one for one in known if classes & _spelt(one)), None)
    if found is None:
        raise unsupported(settings, "model_type")
    inside = [_family(text) for text in found.texts] if isinstance(found, Wrapper) else []
    if stated and not any(classes & _spelt(one) for one in (found, *inside) if one):
        raise unsupported(settings, "architectures")
    return found


def _family(name: str) -> Family | Wrapper | None:
    return FAMILIES.get(name) or WRAPPERS.get(name) or own_family(name)


def _spelt(family: Family | Wrapper) -> set[str]:
    """Older files spell the class LLaMAForCausalLM, transformers one Kimi_K25ForConditionalGeneration.

    LlamaModel is what was saved without a head that may be tied.
    """
    name = _plain(family.architecture)
    return {name, name.replace("forcausallm", "model").replace("forconditionalgeneration", "model")}


def _plain(architecture: str) -> str:
    return architecture.lower().replace("_", "")
