"""What transformers writes of weights that bitsandbytes quantised."""

from pipeline.formats.nf4 import Nf4
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import HEAD_MODULE, Quantization, all_but, refused


def read(settings: JsonObject) -> Quantization:
    """Without a list of what is left out the head is, as in transformers. Raises ConfigError."""
    if settings.flag("load_in_8bit") or not settings.flag("load_in_4bit"):
        raise refused(settings, "load_in_8bit" if settings.flag("load_in_8bit") else "load_in_4bit")
    for key, absent, known in (
        ("bnb_4bit_quant_type", "fp4", "nf4"),
        ("bnb_4bit_quant_storage", "uint8", "uint8"),
    ):
        if settings.text(key, absent) != known:
            raise refused(settings.with_absent({key: absent}), key)
    key = "llm_int8_skip_modules"
    skipped = (HEAD_MODULE,) if settings.get(key) is None else settings.texts(key)
    found = Nf4(is_double=settings.flag("bnb_4bit_use_double_quant"))
    return Quantization(all_but(settings, key, skipped, found))
