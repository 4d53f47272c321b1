"""/metrics: what a model says of itself, under names that dashboards for vLLM know, and under our own."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from actors.core.line import numbered
from pipeline.server.served import STATES, ServedModel, served_of

if TYPE_CHECKING:
    from pipeline.api import Model
    from pipeline.generation.model_statistics import ModelStatistics
    from pipeline.generation.section_record import SectionRecord

    Figure = Callable[[ModelStatistics], float]
    Figures = Callable[[ModelStatistics], Mapping[str, float]]

GAUGES: "dict[str, tuple[str, Figure]]" = {
    "num_requests_running": ("Requests that share passes.", lambda said: said.requests.running),
    "num_requests_waiting": ("Requests that wait for their turn.", lambda said: said.requests.waiting),
    "num_requests_paused": ("Requests whose streams no client reads.", lambda said: said.requests.paused),
    "kv_cache_usage_perc": (
        "KV blocks that requests hold; 1 is all.",
        lambda said: said.kv_blocks.used / max(1, said.kv_blocks.total),
    ),
    "moving_groups": ("Weight groups that come to the device anew in every pass.", lambda said: said.moving_groups),
}
COUNTERS: "dict[str, tuple[str, Figure]]" = {
    "generation_tokens": ("Tokens of answers.", lambda said: said.tokens),
    "computed_tokens": (
        "Tokens that passed through the model, of prompts and answers.",
        lambda said: said.computed_tokens,
    ),
    "passes": ("Passes through the model.", lambda said: said.passes),
    "prefix_cache_queries": ("Tokens of prompts that were looked up.", lambda said: said.prefixes.queried_tokens),
    "prefix_cache_hits": ("Those of them that were found computed.", lambda said: said.prefixes.hit_tokens),
}
LABELLED_COUNTERS: "dict[tuple[str, str], tuple[str, Figures]]" = {
    ("requests", "outcome"): (
        "Requests that have ended.",
        lambda said: {name: getattr(said.requests, name) for name in ("finished", "cancelled", "failed")},
    ),
}
SECTION_GAUGES: "dict[tuple[str, str], tuple[str, Figures]]" = {
    ("queue_depth", "queue"): (
        "Messages that wait in front of an actor.",
        lambda said: {name: one.depth for name, one in said.channels.items()},
    ),
    ("slots_held", "place"): (
        "Slots of a budget that hold weights or KV blocks.",
        lambda said: {name: one.held for name, one in said.budgets.items()},
    ),
    ("resident_groups", "place"): (
        "Weight groups that stay.",
        lambda said: _by_section(said, lambda one: one.resident_groups),
    ),
    ("kv_used_bytes", "place"): (
        "KV blocks that requests hold.",
        lambda said: _by_section(said, lambda one: _kv_used_bytes(one, said.kv_blocks.used)),
    ),
}
SECTION_COUNTERS: "dict[tuple[str, str], tuple[str, Figures]]" = {
    ("expert_hits", "place"): (
        "Experts that were wanted, and found in the place.",
        lambda said: {} if said.experts is None else said.experts.hits,
    ),
    ("expert_misses", "place"): (
        "Experts that were wanted, and not found in the place.",
        lambda said: {} if said.experts is None else said.experts.misses,
    ),
    ("expert_computed", "place"): (
        "Experts that were computed where they lay: in host memory of a device with its own by the CPU.",
        lambda said: {} if said.experts is None else said.experts.computed,
    ),
    ("bytes_streamed", "link"): (
        "Weights read from the disk and copied to the device, and KV blocks that moved.",
        lambda said: _by_section(said, _bytes_streamed),
    ),
    ("stage_busy_seconds", "stage"): ("Seconds in which an actor had work running.", lambda said: said.busy_seconds),
    ("layer_wait_seconds", "stage"): ("Seconds in which an actor waited.", lambda said: said.stalled_seconds),
}
"""Each of a section, by a name that has its number where there are several."""


def _by_section(said: "ModelStatistics", figures: "Callable[[SectionRecord], Mapping[str, float]]") -> dict[str, float]:
    several = len(said.sections) > 1
    return {
        numbered(name, one.number if several else None): figure
        for one in said.sections
        for name, figure in figures(one).items()
    }


def _kv_used_bytes(section: "SectionRecord", blocks: int) -> dict[str, float]:
    return {place: blocks * nbytes for place, nbytes in section.kv.block_bytes.items()}


def _bytes_streamed(section: "SectionRecord") -> dict[str, float]:
    return {
        "disk_weights": section.bytes_read,
        "h2d_weights": section.bytes_uploaded,
        "disk_kv_read": section.kv.bytes_read,
        "disk_kv_written": section.kv.bytes_written,
        "h2d_kv": section.kv.bytes_h2d,
        "d2h_kv": section.kv.bytes_d2h,
    }


class ModelCollector(Collector):
    """Asks the model when it is scraped; before it is open, only its state is told."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """All figures of this moment."""
        now = {state: float(state == self._served.state) for state in STATES}
        yield _labelled(GaugeMetricFamily, ("state", "state"), "1 for the state of the model.", now)
        if self._served.state in ("ready", "draining") and self._served.opened is not None:
            yield from _figures(self._served.opened)


def _figures(model: "Model") -> Iterator[Metric]:
    said = model.statistics()
    for name, (what, figure) in GAUGES.items():
        yield GaugeMetricFamily(f"penstock:{name}", what, value=figure(said))
    for name, (what, figure) in COUNTERS.items():
        yield CounterMetricFamily(f"penstock:{name}", what, value=figure(said))
    for key, (what, figures) in LABELLED_COUNTERS.items():
        yield _labelled(CounterMetricFamily, key, what, figures(said))
    several = len(said.sections) > 1
    for key, (what, figures) in SECTION_GAUGES.items():
        yield _of_sections(GaugeMetricFamily, key, what, figures(said), several=several)
    for key, (what, figures) in SECTION_COUNTERS.items():
        yield _of_sections(CounterMetricFamily, key, what, figures(said), several=several)
    if several:
        waited = {str(one.number): one.waited_seconds or 0.0 for one in said.sections}
        what = "Seconds in which no device computed, before groups of the section."
        yield _labelled(CounterMetricFamily, ("section_waited_seconds", "section"), what, waited)
    yield from _memory(model)


def _memory(model: "Model") -> Iterator[Metric]:
    labels = ["place", "section"]
    used = GaugeMetricFamily("penstock:budget_used_bytes", "Memory that the plan holds.", labels=labels)
    there = GaugeMetricFamily("penstock:budget_bytes", "Memory that there is.", labels=labels)
    for number, plan in enumerate(model.runtime.plans):
        for place, have in plan.available.items():
            used.add_metric([place, str(number)], plan.need(place))
            there.add_metric([place, str(number)], have)
    yield from (used, there)


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    key: tuple[str, str],
    what: str,
    figures: Mapping[str, float],
) -> Metric:
    family = kind(f"penstock:{key[0]}", what, labels=[key[1]])
    for label, figure in figures.items():
        family.add_metric([label], figure)
    return family


def _of_sections(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    key: tuple[str, str],
    what: str,
    figures: Mapping[str, float],
    *,
    several: bool,
) -> Metric:
    """With the number of the section as a label; it is 0 where there is one."""
    family = kind(f"penstock:{key[0]}", what, labels=[key[1], "section"])
    for name, figure in figures.items():
        label, _, number = name.rpartition(" ") if several else (name, "", "0")
        family.add_metric([label, number], figure)
    return family


async def metrics(request: Request) -> Response:
    """All figures, as Prometheus reads them."""
    return Response(generate_latest(served_of(request).timings.registry), media_type=CONTENT_TYPE_LATEST)
