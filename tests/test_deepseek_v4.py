"""DeepSeek-V4 as it is published: the names and formats of its files, and experts that are known before their turn."""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.compressed_models import CASES
from support.deepseek_v4_files import published_tensors
from support.expert_configs import DEEPSEEK_V4_FLASH

from actors.core.event import Event
from pipeline import CheckpointError, ConfigError, Model, Output
from pipeline.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pipeline.checkpoints.config_alone import config_alone
from pipeline.checkpoints.header import TensorEntry
from pipeline.checkpoints.written_formats import written_format
from pipeline.formats.encoding import mxfp4_parts
from pipeline.formats.lookup import E2M1, looked_up, nibble_table
from pipeline.formats.tensors import ITEM_BITS
from pipeline.generation.expert_half import ExpertHalf
from pipeline.generation.host_experts import HostExperts
from pipeline.generation.lone_experts import lone_experts
from pipeline.groups.groups import plan_groups
from pipeline.models.json_object import JsonObject
from pipeline.models.model_config import parse_config, read_config
from pipeline.models.specs import expert_specs, group_specs
from pipeline.tools.convert.conversion import plan_conversion

STEPS = 8
PROMPT = (*tiny_models.PROMPT, *range(3, 190, 7))
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
PLAIN = ("compressor", "weights_proj", "gate", "embed", "head", "norm", "hc_", "ape", "attn_sink", "tid2eid")
"""Parts of the names of what is stored as it is."""


def published_name(name: str) -> str:
    """As DeepSeek writes what transformers has saved."""
    bare = name.removeprefix("model.").replace("embed_tokens.", "embed.").replace("hc_head.hc_", "hc_head_")
    return bare.replace(".attn.norm.", ".attn.kv_norm.")


def as_fp8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, scales of blocks of 128 x 128, and what both mean."""
    rows, columns = (-(-size // 128) for size in matrix.shape)
    scales = torch.full((rows, columns), 2.0**-10)
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: len(matrix), : matrix.shape[1]]
    values = (matrix / wide).to(torch.float8_e4m3fn)
    return values, scales.to(torch.float8_e8m0fnu), values.float() * wide


def as_fp4(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of pairs of values, and scales of 32 columns."""
    pairs, scales = mxfp4_parts(matrix).values()
    scales = scales.view(torch.float8_e8m0fnu)
    means = looked_up(pairs, nibble_table(E2M1, torch.device("cpu"))) * scales.float().repeat_interleave(32, 1)
    return pairs.view(torch.int8), scales, means


def stored(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The name and contents of what a published file has of a tensor, and what it means."""
    if any(part in name for part in PLAIN):
        yield name, tensor, tensor
        return
    encode: Callable[..., Any] = as_fp4 if ".experts." in name else as_fp8
    values, scales, means = encode(tensor)
    yield name, values, means
    yield f"{name.removesuffix('weight')}scale", scales, means


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model as it is published, with a layer that drafts, and what it means, as transformers saves it."""
    published, plain = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("plain")
    config = CASES["deepseek_v4"].config()
    config.hidden_size, config.moe_intermediate_size, config.o_lora_rank = 64, 96, 128
    tiny_models.save_model(tiny_models.randomised(config, seed=5, deviation=0.1), plain, shards=1)
    settings, files = json.loads((plain / "config.json").read_text()), [*plain.glob("*.safetensors")]
    tensors: dict[str, torch.Tensor] = {"mtp.0.enorm.weight": torch.ones(64)}
    for file in files:
        meant = load_file(file)
        for saved, tensor in meant.items():
            for name, contents, means in stored(published_name(saved), tensor):
                tensors[name] = contents
                meant[saved] = means.contiguous()
        save_file(meant, file, metadata={"format": "pt"})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, published / "model.safetensors")
    settings |= {"quantization_config": FP8, "expert_dtype": "fp4"}
    (published / "config.json").write_text(json.dumps(settings))
    return published, plain


def generated(folder: Path, **settings: Any) -> Output:
    async def main() -> Output:
        async with Model.open(folder, dtype="float32", **settings) as model:
            every = tiny_models.VOCABULARY_SIZE
            return await model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True, logprobs=every)

    return asyncio.run(main())


def test_published_files_say_what_transformers_says(folders: tuple[Path, Path]) -> None:
    published, plain = folders
    reference = tiny_models.transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    expected = tiny_models.greedy_anew(reference.eval(), PROMPT, STEPS)
    output = generated(published, device="cpu")
    assert list(output.token_ids) == expected.token_ids
    assert output.logprobs is not None
    for step, logprobs in enumerate(output.logprobs):
        ours = torch.tensor([logprobs[token_id] for token_id in range(tiny_models.VOCABULARY_SIZE)])
        torch.testing.assert_close(ours, expected.logprobs[step], atol=1e-4, rtol=0)
    assert generated(published, device="cpu-copy", gpu_experts=2, host_experts=5, max_tokens_per_pass=18) == output


@pytest.mark.parametrize("slots", [{"device": "cpu", "gpu_experts": 12}, {"device": "cpu-copy", "host_experts": 9}])
def test_experts_that_tokens_choose_are_read_before_their_layers_turn(
    slots: dict[str, Any], folders: tuple[Path, Path]
) -> None:
    """Of the two layers whose experts follow from the token all that must come is asked for ahead, and none in vain."""

    async def main() -> None:
        settings = {"gpu_experts": 8, "context_tokens": 64, "dtype": "float32", "lookahead": False, **slots}
        async with Model.open(folders[0], **settings) as model:
            await model.generate(PROMPT[:1], max_new_tokens=STEPS, ignore_eos=True)
            said = model.statistics().experts
        assert said is not None
        *_, (_, uses) = said.layers.items()
        assert said.hints.asked == uses[0].misses + uses[1].misses > 0
        assert said.hints.useful == said.hints.sent > 0
        assert said.hints.wasted == 0

    asyncio.run(main())


def test_kernels_of_a_gpu_know_its_experts(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            model = read_config(folder)
            specs = group_specs(model) | expert_specs(model)
            groups = plan_groups(specs, checkpoint, model.quantization.format_of, model.drafting_layers)
            assert len(groups.experts) == 12 * model.layers
            assert lone_experts(model, groups) is None


@pytest.mark.parametrize("opens", [True, False])
def test_where_nothing_is_left_to_the_cpu_no_router_of_these_layers_is_waited_for(
    opens: bool, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four layers two choose by token. Where the CPU computes some, the rows of these must have come, too."""
    waits, passes = list[str](), 3
    settings: dict[str, Any] = {"device": "cpu-copy", "gpu_experts": 1, "host_experts": 48, "cpu_experts": True}
    counts = ExpertHalf._counts

    async def main() -> None:
        async with Model.open(folders[1], context_tokens=64, dtype="float32", **settings) as model:
            device = model.runtime.device
            wait = device.ended_soon

            async def waited(event: Event) -> None:
                waits.append(str(event))
                await wait(event)

            async def counted(self: ExpertHalf, *arguments: Any) -> list[int]:
                assert self._host is not None
                self._host.opens = opens
                return await counts(self, *arguments)

            monkeypatch.setattr(device, "ended_soon", waited)
            monkeypatch.setattr(ExpertHalf, "_counts", counted)
            await model.generate(PROMPT[:1], max_new_tokens=passes, ignore_eos=True)
            said = model.statistics().experts
        assert said is not None
        assert (sum(said.on_cpu.values()) > 0) == opens
        assert len(waits) == passes * (4 if opens else 2)

    asyncio.run(main())


def test_a_pass_that_leaves_nothing_to_the_cpu_takes_nothing_of_the_one_before(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first layers choose by token, and ask the CPU for nothing."""
    begin, passes = HostExperts.begin, list[int]()

    def every_other_opens(self: HostExperts, rows: int) -> None:
        begin(self, rows)
        passes.append(rows)
        self.opens = self.opens and len(passes) % 2 == 0

    expected = generated(folders[1], device="cpu-copy")
    monkeypatch.setattr(HostExperts, "begin", every_other_opens)
    split = {"gpu_experts": 1, "host_experts": 48, "cpu_experts": True}
    assert generated(folders[1], device="cpu-copy", **split) == expected
    assert len(passes) > 4


def test_a_table_of_experts_that_there_are_not_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(folders[0] / "model.safetensors")
    tensors["layers.1.ffn.gate.tid2eid"][7, 1] = 12
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders[0] / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn\.gate\.tid2eid': need experts from 0 to 11, have 12; "):
        generated(tmp_path, device="cpu")


def test_others_say_the_same_when_requests_are_cancelled_at_any_step(folders: tuple[Path, Path]) -> None:
    async def main() -> None:
        settings = {"device": "cpu", "dtype": "float32", "share_prefixes": True, "max_requests": 4, "gpu_experts": 30}
        async with Model.open(folders[0], context_tokens=64, max_tokens_per_pass=24, **settings) as model:

            async def cancelled(steps: int) -> None:
                stream = model.stream(PROMPT[:30], max_new_tokens=STEPS, ignore_eos=True)
                for _ in range(steps):
                    await anext(stream)
                await stream.aclose()

            alone = await model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True)
            for steps in (0, 5):
                together = asyncio.gather(cancelled(steps), cancelled(steps + 1))
                assert await model.generate(PROMPT, max_new_tokens=STEPS, ignore_eos=True) == alone
                await together
            await model.generate(PROMPT[:1], max_new_tokens=1)  # by then all that were cancelled have left
            said = model.statistics()
        assert said.kv_blocks.used == 0

    asyncio.run(main())


def test_blocks_of_a_matrix_that_its_format_cannot_cut_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    settings = json.loads((folders[0] / "config.json").read_text()) | {"o_lora_rank": 12}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    alone = config_alone(tmp_path)
    assert alone is not None
    need = r"attn\.wo_a\.weight': need a matrix that can be cut into 2, at a multiple of 128 rows, have 12 rows each"
    with pytest.raises(CheckpointError, match=need):
        plan_groups(group_specs(alone.model), alone.checkpoint, alone.model.quantization.format_of)


def test_it_is_not_converted(folders: tuple[Path, Path]) -> None:
    with (
        open_checkpoint(folders[0]) as checkpoint,
        pytest.raises(ConfigError, match=r"layers\.0\.attn\.wo_a\.weight: need a matrix that is multiplied whole"),
    ):
        plan_conversion(folders[0], checkpoint, written_format("fp8"))


@pytest.mark.parametrize("said", ["fp4", None])
def test_the_tensors_of_the_published_files_are_all_that_is_needed(said: str | None) -> None:
    """By name, shape and dtype; the first files did not say in what their experts are stored."""
    entries, end = {}, 0
    for name, (shape, dtype) in published_tensors().items():
        length = math.prod(shape) * ITEM_BITS[dtype] // 8
        entries[name], end = TensorEntry(Path("model.safetensors"), dtype, shape, end, length), end + length
    settings = {key: value for key, value in DEEPSEEK_V4_FLASH.items() if said or key != "expert_dtype"}
    settings["num_hidden_layers"] = 5
    model = parse_config(JsonObject("config.json", settings))
    specs = group_specs(model) | expert_specs(model)
    groups = plan_groups(specs, Checkpoint(Path(), entries, {}), model.quantization.format_of, model.drafting_layers)
    assert {*groups.ignored} == {name for name in entries if name.startswith("mtp.")}
    used = (
        sum(one.needed_bytes for one in (*groups.groups, *groups.experts, *groups.tables))
        + groups.embed.tensors[0].length
    )
    assert used == end - sum(entries[name].length for name in groups.ignored)
    assert len(groups.formats["DeepSeek MXFP4"]) == 5 * 256 * 3
