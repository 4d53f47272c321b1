"""Try budgets and queue sizes, and read from the statistics who waits for whom."""

import asyncio
import time

from pipeline import Model


async def main() -> None:
    print("gpu_groups  queue   seconds  disk busy  device idle  output")
    for gpu_groups, queue in ((1, 1), (2, 1), (4, 1), (4, 4), (8, 8)):
        queues = {"disk_reader": queue, "pinned_stager": queue, "gpu_uploader": queue, "compute_scheduler": queue}
        async with Model.open(gpu_groups=gpu_groups, queues=queues) as model:
            started = time.perf_counter()
            output = await model.generate("class Node:\n", max_new_tokens=16)
            seconds = time.perf_counter() - started
            statistics = model.statistics()
            idle = seconds - statistics.busy_seconds["compute_scheduler"]
            busy = statistics.busy_seconds["disk_reader"]
            print(f"{gpu_groups:10} {queue:6} {seconds:9.3f} {busy:10.3f} {idle:12.3f}  {output.text[:20]!r}")


asyncio.run(main())
