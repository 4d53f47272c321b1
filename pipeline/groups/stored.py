"""Where a checkpoint holds a tensor that the model needs: under which name, or what is wrong with it."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from pipeline.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE, SUFFIX, Checkpoint
from pipeline.checkpoints.header import brief
from pipeline.formats.parts import PREFIXES, TEXT_PREFIX, bare_name, spellings
from pipeline.formats.tensors import TensorSpec

MOST_NAMED = 5
HEADER_LIMIT_BYTES = 1 << 20
"""Of a tensor that is read when the model is opened."""
ADVICE = "config.json says otherwise: check its quantization_config"
BIAS = "bias"
ACTIVATION_PARTS = (
    "activation_scale",
    "input_global_scale",
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
)
"""What a quantised matrix may have beside it for activations, which are not quantised here."""


def spare_parts(names: Collection[str], unused: Iterable[str], checkpoint: Checkpoint) -> Iterator[str]:
    """Those of the `unused` tensors that lie beside quantised matrices of these names, and change nothing.

    That is what activations would need, and a bias of zeros, which GPTQ's first tools wrote for every matrix.
    """
    stems = {bare_name(name.removesuffix(".weight")) for name in names}
    for tensor in unused:
        ending = next((ending for ending in (*ACTIVATION_PARTS, BIAS) if tensor.endswith(ending)), "")
        if (
            ending
            and bare_name(tensor[: -len(ending) - 1]) in stems
            and (ending != BIAS or _is_zero(tensor, checkpoint))
        ):
            yield tensor


def _is_zero(name: str, checkpoint: Checkpoint) -> bool:
    return checkpoint.tensors[name].length <= HEADER_LIMIT_BYTES and not checkpoint.content(name).strip(b"\0")


def stored_names(spec: TensorSpec, checkpoint: Checkpoint) -> list[str]:
    """The spellings of the first of its names that are there."""
    for name in spec.names or (spec.name,):
        bare = bare_name(name)
        if stored := [one for prefix in checkpoint.prefixes if (one := prefix + bare) in checkpoint.tensors]:
            return sorted(stored, key=name.__ne__)
    return []


def faults(spec: TensorSpec, stored: Sequence[str], checkpoint: Checkpoint) -> Iterator[str]:
    """What keeps the model from being computed with this tensor, which has these `stored_names`."""
    if not stored:
        yield _missing(spec, checkpoint)
        return
    entry = checkpoint.tensors[stored[0]]
    what = f"{entry.file}: tensor {stored[0]!r}"
    if len(stored) > 1:
        other = checkpoint.tensors[stored[1]].file
        yield f"{what}: need one place, have {stored[1]!r} in {other} too; keep one"
    if stored[0] in checkpoint.repeated:
        yield f"{what}: need one place, {checkpoint.repeated[stored[0]]} holds it too; keep one"
    if entry.shape not in (shapes := spec.shapes or (spec.shape,)) and not (spec.is_header and spec.shape == ()):
        yield f"{what}: need shape {' or '.join(str([*shape]) for shape in shapes)}, have {list(entry.shape)}"
    if spec.is_header and not 0 < entry.length <= HEADER_LIMIT_BYTES:
        yield f"{what}: need 1 to {HEADER_LIMIT_BYTES} bytes, have {entry.length}"
    if entry.dtype not in spec.dtypes:
        need = ", ".join(spec.dtypes)
        yield f"{what}: need dtype {need}, have {entry.dtype}; {ADVICE}"


def _missing(spec: TensorSpec, checkpoint: Checkpoint) -> str:
    names = [one for name in spec.names or (spec.name,) for one in spellings(name)]
    need = f"need shape {list(spec.shape)}"
    for name in names:
        if (file := checkpoint.promised.get(name)) is not None:
            return f"{file}: lacks tensor {name!r}, which {INDEX_FILE} promises: {need}; fetch the file again"
    advice = "fetch the file that holds it, or the config.json of these weights"
    if spec.short == "output" and not spec.names:
        advice = "config.json has tie_word_embeddings false, so the embedding cannot stand in for it; " + advice
    return f"{checkpoint.folder}: tensor {_as_others(spec.name, checkpoint)!r} is missing: {need}; {advice}"


def _as_others(name: str, checkpoint: Checkpoint) -> str:
    """With the prefix that layers have in the checkpoint, if there are any and the name has one."""
    firsts = {stored.partition("layers.")[0] for stored in checkpoint.tensors if "layers." in stored}
    used = [prefix for prefix in PREFIXES if prefix in firsts]
    return used[0] + bare_name(name) if used and bare_name(name) != name else name


def hints(spec: TensorSpec, checkpoint: Checkpoint) -> Iterator[str]:
    """Where a tensor that is missing may be: behind a prefix that no reader knows, or in a file that nothing names."""
    end = bare_name(spec.name)
    if (name := next((name for name in checkpoint.tensors if name.endswith(f".{end}")), None)) is not None:
        prefix = name.removesuffix(end).removesuffix(TEXT_PREFIX)
        yield (
            f"{checkpoint.tensors[name].file}: tensor {brief(name)}: need the name {spec.name!r}: {brief(prefix)} is "
            "left from something around the model; take it off all names, or save the model itself"
        )
    if unread := sorted(path.name for path in checkpoint.folder.glob(f"*{SUFFIX}") if path not in checkpoint.files):
        read = ", ".join(sorted(path.name for path in checkpoint.files)[:MOST_NAMED])
        yield (
            f"{checkpoint.folder}: was read as {read}; {', '.join(unread[:MOST_NAMED])} lies there too: if it holds "
            f"what is missing, name it in {INDEX_FILE}, and let no {SINGLE_FILE} go before that"
        )
