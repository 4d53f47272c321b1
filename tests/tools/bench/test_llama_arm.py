"""What llama.cpp is given of a checkpoint."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support import tiny_models

from pipeline.errors import ConfigError
from pipeline.formats.integers import IntegerMatrix
from pipeline.formats.packed_ints import PackedIntegers
from pipeline.tools.bench import llama_arm
from pipeline.tools.bench.pass_arm import PassSettings, Scenario


def test_llama_cpp_gets_the_numbers_and_scales_of_int4() -> None:
    """As its Q4_0 is defined: of 32 numbers, byte i has number i low and number 16 + i high, behind their scale."""
    torch.manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (6, 32)).to(torch.int32)
    matrix = IntegerMatrix(PackedIntegers(4, 64, symmetric=True), (6, 256), (words, torch.rand(6, 4)), None)
    blocks = llama_arm.q4_0_blocks(matrix.encoded()).view(6, 8, 18)
    scales, pairs = blocks[..., :2].contiguous().view(torch.float16), blocks[..., 2:]
    numbers = torch.cat((pairs & 15, pairs >> 4), dim=-1).to(torch.float32) - 8
    torch.testing.assert_close((scales * numbers).view(6, 256), matrix.decoded(torch.float32), rtol=1e-3, atol=0)
    zeros = torch.zeros(1, 4, dtype=torch.int32)
    for others in (
        IntegerMatrix(PackedIntegers(4, 64, symmetric=False), (6, 256), (words, torch.rand(6, 4), zeros), None),
        IntegerMatrix(PackedIntegers(4, 16, symmetric=True), (6, 256), (words, torch.rand(6, 16)), None),
        IntegerMatrix(PackedIntegers(8, 64, symmetric=True), (6, 128), (words, torch.rand(6, 2)), None),
    ):
        with pytest.raises(ConfigError, match="need symmetric int4 in groups of a multiple of 32 columns, as convert"):
            llama_arm.q4_0_blocks(others.encoded())


@pytest.mark.parametrize("sampled", [False, True])
def test_llama_cpp_draws_as_all_arms_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampled: bool) -> None:
    """One request, with its own samplers, over all tokens that there are."""
    called: list[tuple[str, tuple[object, ...]]] = []

    def answer(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            called.append((name, arguments))
            return {"llama_sampler_sample": 7, "llama_decode": 0}.get(name, SimpleNamespace())

        return call

    fake = ModuleType("llama_cpp")
    monkeypatch.setattr(fake, "__getattr__", answer, raising=False)
    monkeypatch.setattr(llama_arm, "check_installed", lambda: None)
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    (tmp_path / "weights.gguf").touch()
    tiny_models.save("llama_gqa_llama3", tmp_path)
    scenarios = [asdict(Scenario(requests=1, prompt_tokens=3, passes=2, sampled=sampled))]
    settings = PassSettings(
        folder=str(tmp_path),
        offload_folder="",
        arm="llama.cpp",
        scenarios=scenarios,
        gguf=str(tmp_path / "weights.gguf"),
    )
    (passes,) = llama_arm.run(settings)
    assert passes.token_ids == [[7] * 5]
    assert len(passes.pass_seconds) == 2
    steps = {name.removeprefix("llama_sampler_init_"): arguments for name, arguments in called if "_init_" in name}
    drawn = {
        "penalties": (tiny_models.VOCABULARY_SIZE, 8, 1.1, 0.0, 0.0),
        "temp": (0.8,),
        "top_p": (0.95, 1),
        "dist": (llama_arm.SEED,),
    }
    steps.pop("llama_init_from_model")
    assert steps == (drawn if sampled else {"greedy": ()})
    assert sum(name == "llama_sampler_chain_add" for name, _ in called) == len(steps)
