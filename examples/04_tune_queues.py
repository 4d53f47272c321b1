"""Try budgets and queue sizes, read from the statistics who waits for whom, and tell an effect from the noise."""

import asyncio
import time

from pipeline import Model

ROUNDS = 3


async def measure(gpu_groups: int, queue: int) -> tuple[float, str]:
    queues: dict[str, int] = dict.fromkeys(("disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"), queue)
    # residency=False lets all groups move: a model that fits into memory stays there else, and no setting matters.
    async with Model.open(gpu_groups=gpu_groups, queues=queues, residency=False) as model:
        before, started = model.statistics(), time.perf_counter()
        output = await model.generate("class Node:\n", max_new_tokens=8)
        seconds, after = time.perf_counter() - started, model.statistics()
    busy = {name: after.busy_seconds[name] - before.busy_seconds[name] for name in after.busy_seconds}
    disk, idle = busy["disk_reader"], seconds - busy["compute_scheduler"]
    return seconds, f"{after.moving_groups:13} {seconds:9.3f} {disk:10.3f} {idle:12.3f}  {output.text[:20]!r}"


async def main() -> None:
    runs: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for _ in range(ROUNDS):  # in turn, so that whatever else the machine does meets all settings alike
        for setting in ((1, 1), (2, 1), (4, 1), (4, 4), (8, 8)):
            runs.setdefault(setting, []).append(await measure(*setting))
    print("gpu_groups  queue  moving groups   seconds  disk busy  device idle  output")
    for (gpu_groups, queue), measured in runs.items():
        print(f"{gpu_groups:10} {queue:6} {min(measured)[1]}")
    best = sorted(min(measured)[0] for measured in runs.values())
    noise = max(max(measured)[0] / min(measured)[0] - 1 for measured in runs.values())
    effect = best[-1] / best[0] - 1
    verdict = "more than" if effect > noise else "which proves nothing beside"
    print(f"-- from setting to setting up to {effect:.0%}, {verdict} the {noise:.0%} between runs of the same setting")


asyncio.run(main())
