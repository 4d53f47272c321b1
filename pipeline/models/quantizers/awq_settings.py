"""AWQ as AutoAWQ writes it, and llm-awq in its file of settings, whose keys have other names."""

from pipeline.formats.awq import Awq
from pipeline.models.json_object import JsonObject
from pipeline.models.quantizers.quantization import HEAD_MODULE, Quantization, all_but, group_columns, refused


def read(settings: JsonObject) -> Quantization:
    """The head is always left out, as in transformers. Raises ConfigError."""
    bits, group, version = (
        settings.first(*keys) for keys in (("bits", "w_bit"), ("group_size", "q_group_size"), ("version", "format"))
    )
    if settings.text(version, "gemm").lower() != "gemm":
        raise refused(settings, version)
    if settings.get(bits) not in (4, None):
        raise refused(settings, bits)
    if not settings.flag("zero_point", default=True):
        raise refused(settings, "zero_point")
    skips = "modules_to_not_convert"
    found = Awq(group=group_columns(settings, group, absent=128))
    return Quantization(all_but(settings, skips, (HEAD_MODULE, *settings.texts(skips)), found))
