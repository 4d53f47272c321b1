"""A forecast of a model with experts against runs of it, with rates measured right before and after each.

    python tests/support/forecast_and_run.py CHECKPOINT DEVICE HOST,DEVICE [HOST,DEVICE ...]

One request of drawn tokens; its own routing, recorded in the first run, is what the forecast knows. Slots for experts
are given by place; on a CPU the first number is left out. What is measured apart from whole passes is measured in one
round: it says how a pass's seconds are shared out, not how many they are. Prints the mean of the second half of the
tokens, the forecasts, and how long a layer took by how many experts it read and copied.
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from support.recorded_mixture import watch

from actors.core.expert_cache import Found
from pipeline import Model
from pipeline.config import Config
from pipeline.devices.open import open_device
from pipeline.tools.bench import machine_rates
from pipeline.tools.bench.forecast import MeasuredCompute, Rates
from pipeline.tools.bench.machine_rates import measure_rates
from pipeline.tools.bench.planning import plan_model
from pipeline.tools.routing.recorded_routing import RecordedRouting, read_routing, write_routing

TOKENS = 64


@dataclass
class Watched:
    """When layers wanted experts, and how many of them were read and copied."""

    wants: list[tuple[float, int, int, int]] = field(default_factory=list)

    def listen(self, store: Any) -> None:
        """Hear of what layers want, and let others hear of it, too."""
        told = store.told

        def note(layer: int, count: int, found: Sequence[Found], *more: Any) -> None:
            self.wants.append((time.perf_counter(), layer, len(found[0].misses), len(found[-1].misses)))
            if told is not None:
                told(layer, count, found, *more)

        store.told = note

    def lines(self, skip: int) -> list[str]:
        """Means from want to want, by what was read and copied; the last layer of a pass apart."""
        took: defaultdict[tuple[bool, int, int], list[float]] = defaultdict(list)
        wants = self.wants[skip:]
        for (began, layer, read, copied), (ended, following, *_) in itertools.pairwise(wants):
            took[following <= layer, read, copied - read].append(1000 * (ended - began))
        return [
            f"  {'last layer' if last else 'layer':10} read {read}, copied {copied}: mean {statistics.fmean(each):.2f} "
            f"median {statistics.median(each):.2f} ms of {len(each)}"
            for (last, read, copied), each in sorted(took.items())
        ]


async def run(folder: Path, settings: dict[str, Any], *, record: bool) -> tuple[float, float, Any, Watched]:
    """Seconds and bytes read per token, what was recorded, and when layers wanted experts."""
    async with Model.open(folder, **settings) as model:
        recorder, watched = (watch(model, folder) if record else None), Watched()
        assert model.runtime.expert_line is not None
        watched.listen(model.runtime.expert_line.store)
        times, read = [], []
        async for _ in model.stream([3, 5, 7, 11], max_new_tokens=TOKENS, temperature=2.0, seed=4, ignore_eos=True):
            times.append(time.perf_counter())
            said = model.statistics().experts
            assert said is not None
            read.append(said.bytes_read)
    half, last = len(times) // 2, len(times) - 1
    per_token = (times[last] - times[half]) / (last - half), (read[last] - read[half]) / (last - half)
    return *per_token, recorder and recorder.recorded(), watched


def told(rates: Rates) -> str:
    """What was measured."""
    computes = {}
    for kind, one in rates.computes.items():
        assert isinstance(one, MeasuredCompute)
        computes[kind] = f"{1e12 * next(iter(one.parameter_seconds.values())):.1f}"
    waits = {} if rates.expert_waits is None else asdict(rates.expert_waits)
    waits = {name.removesuffix("_seconds"): round(1000 * each, 3) for name, each in waits.items()}
    return (
        f"disk {rates.disk_bytes_per_second / 1e9:.2f} GB/s, h2d {(rates.h2d_bytes_per_second or 0) / 1e9:.1f}, begin "
        f"{1000 * rates.begin_seconds:.2f} ms, waits {waits} ms, computes {computes} ps, slower "
        f"{rates.read_slowdown:.2f} {rates.compute_slowdown:.2f}"
    )


async def main(folder: Path, device: str, slots: Sequence[str]) -> None:
    """Rates, run, rates, run, rates ..."""
    routing: RecordedRouting | None = None
    common = {"device": device, "context_tokens": 256, "max_requests": 1, "max_tokens_per_pass": 64}
    common |= {"checksums": False, "lookahead": False}
    before: Rates | None = None
    machine_rates.ROUNDS = 1
    for each in slots:
        *host, last = map(int, each.split(","))
        settings = {**common, "gpu_experts": last, **({"host_experts": host[0]} if host else {})}
        config = Config.from_arguments(settings)
        if before is None:
            began = time.perf_counter()
            before = await measure_rates(folder, config, 1, lambda _: None)
            print(f"rates in {time.perf_counter() - began:.1f} s: {told(before)}", flush=True)
        seconds, read, recorded, watched = await run(folder, settings, record=routing is None)
        if recorded is not None:
            file = Path(tempfile.mkdtemp()) / "routing"
            write_routing(file, recorded)
            routing = read_routing(file)
        after = await measure_rates(folder, config, 1, lambda _: None)
        print(f"rates: {told(after)}")
        forecasts = []
        for rates in (before, after):
            planned = await asyncio.to_thread(plan_model, folder, config, open_device(device), rates, 1, routing)
            forecasts.append(planned.forecast.pass_seconds)
        assert planned.experts is not None
        mean = statistics.fmean(forecasts)
        print(
            f"{device} {each}: run {1000 * seconds:.1f} ms, {read / 1e6:.1f} MB; forecast {1000 * mean:.1f} ms "
            f"({mean / seconds - 1:+.1%}; {' '.join(f'{1000 * one:.1f}' for one in forecasts)}), "
            f"{planned.experts.read_bytes / 1e6:.1f} MB, {dict(planned.forecast.resource_seconds)}",
            flush=True,
        )
        print("\n".join(watched.lines(len(watched.wants) // 2)), flush=True)
        before = after


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
