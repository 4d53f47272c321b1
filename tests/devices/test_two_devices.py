"""Two devices in one process: each with memory, lanes, promises and statistics of its own."""

import asyncio
from pathlib import Path

from support import tiny_models

from pipeline import Model
from pipeline.devices.cpu import CpuDevice
from pipeline.devices.port import HOST
from pipeline.system.memory_plan import Holding, MemoryPlan
from pipeline.system.promises import give_back, promise, promised_elsewhere


async def test_models_on_two_devices_compute_beside_each_other_and_one_outlives_the_other(tmp_path: Path) -> None:
    tiny_models.save("llama_gqa_llama3", tmp_path)

    async def answer(model: Model) -> tuple[int, ...]:
        output = await model.generate(tiny_models.PROMPT, max_new_tokens=6, ignore_eos=True)
        return output.token_ids

    one, another = (Model.open(tmp_path, device="cpu-copy", residency=False) for _ in range(2))
    async with another as second:
        async with one as first:
            devices = [model.runtime.device for model in (first, second)]
            assert devices[0] is not devices[1]
            told, other = await asyncio.gather(answer(first), answer(second))
            assert told == other == await answer(second)
            passes = first.statistics().passes
            assert second.statistics().passes == 2 * passes, "statistics are those of one device"
            read = first.statistics().bytes_read
            assert 1.5 * read < second.statistics().bytes_read < 2.5 * read
        assert devices[0].touched_bytes(HOST) == 0, "closing one frees its memory"
        assert devices[1].touched_bytes(HOST) > 0, "and not that of the other"
        assert await answer(second) == told


class Gpu(CpuDevice):
    """A device with memory of its own, as a GPU has it."""

    def __init__(self, index: int) -> None:
        super().__init__(copy=True)
        self.pools = {HOST: HOST, self.places[-1].name: f"gpu:{index}"}


def test_what_one_was_promised_another_one_with_memory_of_its_own_does_not_lack() -> None:
    first, second = Gpu(0), Gpu(1)
    holdings = tuple(Holding("KV blocks", place.name, 1000 + index, "knob") for index, place in enumerate(first.places))
    promise(first, Path("one"), MemoryPlan(holdings, {}))
    try:
        told = [
            {(one.place, one.nbytes) for one in promised_elsewhere(device.pools) if "model one" in one.holder}
            for device in (first, second)
        ]
    finally:
        give_back(first)
    assert told == [{("host", 1000), ("device", 1001)}, {("host", 1000)}], "host memory is one for both"
