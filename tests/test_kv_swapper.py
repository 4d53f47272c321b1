"""KV blocks that outgrow the device, and host memory too: the same tokens, and nothing moves but what must."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.cases import EVERYTHING, in_turn
from support.kv_places import settings_with_room

from pipeline import Model

pytestmark = pytest.mark.usefixtures("nothing_was_there_before")
LAYERS = 8
NEW_TOKENS = 12
UNLIKE = (
    [*tiny_models.VARIANTS] if EVERYTHING else ["llama_mha", "llama_gqa_llama3", "llama_head_dim", "mistral_window"]
)
"""Models whose blocks differ: in heads, in the size of a head, and in which of them a pass needs."""
PROMPTS = [
    [random.Random(index).randrange(1, tiny_models.VOCABULARY_SIZE) for _ in range(length)]
    for index, length in enumerate((1, 37, 16, 5, 60))
]


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new(request.param, tmp_path_factory, layers=LAYERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_new("llama_gqa_llama3", tmp_path_factory, layers=LAYERS)


async def answers(model: Model) -> list[tuple[Any, Any]]:
    calls = (
        model.generate(prompt, max_new_tokens=NEW_TOKENS - index, ignore_eos=True, logprobs=3)
        for index, prompt in enumerate(PROMPTS)
    )
    return [(output.token_ids, output.logprobs) for output in await asyncio.gather(*calls)]


SETTINGS = {"context_tokens": 96, "kv_tokens": 480, "max_tokens_per_pass": 48}


@pytest.mark.parametrize(("variant", "device"), in_turn(UNLIKE, ["cpu-copy", "cpu"]), indirect=["variant"])
async def test_blocks_in_three_places_change_no_bit(device: str, variant: Path, tmp_path: Path) -> None:
    async with Model.open(variant, device=device, **SETTINGS) as model:
        assert model.runtime.plan.holdings[-1].place != "disk"
        expected = await answers(model)
        computed_tokens = model.statistics().computed_tokens
    room = {"device_layers": 2, "host_layers": LAYERS // 2}
    settings = settings_with_room(variant, tmp_path, **room, device=device, **SETTINGS)
    async with Model.open(variant, **settings) as model:
        assert await answers(model) == expected
        moved, memory = model.runtime.cache, model.runtime.cache.memory
        kept = memory.placement
        places = [len(layers) for layers in (kept.device, kept.host, kept.disk)]
        assert places == ([0, 1, 7] if device == "cpu-copy" else [1, 0, 7])
        assert model.statistics().computed_tokens == computed_tokens
        if device == "cpu-copy":
            new_bytes = LAYERS * computed_tokens * sum(memory.layouts[0].row_bytes)
            async with asyncio.timeout(5):
                while moved.bytes_out < new_bytes:  # those of the last pass may still be on their way
                    await asyncio.sleep(0.01)
            assert moved.bytes_out == new_bytes, "new rows, nothing else"
            assert moved.bytes_in > moved.bytes_out
        else:
            assert moved.bytes_in == moved.bytes_out == 0, "memory is one"
        assert memory.spill is not None
        assert memory.spill.bytes_read > 0
        assert memory.spill.bytes_written > 0
        assert model.statistics().kv_blocks.used == 0


async def test_a_pass_that_nobody_waits_for_moves_nothing_more(checkpoint: Path, tmp_path: Path) -> None:
    settings = settings_with_room(checkpoint, tmp_path, 2, LAYERS // 2, device="cpu-copy", **SETTINGS)
    async with Model.open(checkpoint, **settings) as model:
        cache, section = model.runtime.cache, model.runtime.section
        step, steps = section.step, 0
        call = asyncio.create_task(model.generate(PROMPTS[4], max_new_tokens=20, ignore_eos=True))

        def leaving(pass_: Any, message: Any) -> Any:
            """The only caller leaves in the middle of the fourth pass."""
            nonlocal steps
            steps += 1
            if steps == 3 * len(section.order) + 2 * 4:
                call.cancel()
                for piece in pass_.pieces:
                    piece.sequence.cancel()
            return step(pass_, message)

        section.step = leaving  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await call
        await model.generate([1], max_new_tokens=1)
        rows = 60 + 1 + 1  # the prompt in two passes, one token in the third; then another request's
        half = cache.bytes_out / sum(cache.memory.layouts[0].row_bytes) - LAYERS * rows
        assert 0 < half <= 5, "the layers before it left, and one that was on its way"
