"""The comparison of policies on a real device, on the bundled model: what it runs, what it counts, what it refuses."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pipeline.tools.bench.policy_runs as bench_policies
from actors.core.ports import PrefetchPolicy
from actors.core.trace import Span
from pipeline.api import BUNDLED
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES
from pipeline.errors import ConfigError
from pipeline.generation.chunks import Output
from pipeline.tools.bench.policy_runs import (
    CHAINED_TITLE,
    NEW_TOKENS,
    TOLERATED_DIFFERENCE,
    OutputsDiffer,
    PolicyBench,
    PolicyReport,
    measured_balance,
)
from pipeline.tools.simulation.replay import Replay
from pipeline.tools.simulation.sim_line import Simulated, simulate
from pipeline.tools.trace.recording import COMPUTE, DISK, LINK

SETTINGS = {"device": "cpu", "dtype": "auto", "gpu_groups": 6, "host_groups": 5}
NAMES = ["history", "stage1", "current", "stage3", "backpressure"]
TITLES = ["history", "stage1", "current", CHAINED_TITLE, "stage3", "backpressure"]
PASSES, BATCH_TOKENS = 2, 16
POSITIONS = 1024
"""That the bundled model was made for."""


class Call(NamedTuple):
    """How a simulation was called, and what came of it."""

    timings: Replay
    policy: PrefetchPolicy
    settings: Mapping[str, Any]
    simulated: Simulated


@dataclass
class Compared:
    """One comparison, and the simulation of each policy."""

    bench: PolicyBench
    reports: list[PolicyReport]
    calls: list[Call]
    said: list[str]

    @property
    def by_title(self) -> dict[str, PolicyReport]:
        """All reports, the chained one of `current` too, in the order in which they were measured."""
        rows = {}
        for report in self.reports:
            rows[report.measured.policy] = report
            if report.chained is not None:
                rows[CHAINED_TITLE] = report.chained
        return rows


def policies(names: Sequence[str]) -> dict[str, PrefetchPolicy]:
    return {name: POLICIES[name] for name in names}


def bench_of(said: list[str], expected: Output | None = None) -> PolicyBench:
    return PolicyBench(BUNDLED, SETTINGS, PASSES, BATCH_TOKENS, said.append, expected)


@pytest.fixture(scope="module")
def compared() -> Compared:
    calls: list[Call] = []
    said: list[str] = []

    def simulated(timings: Replay, policy: PrefetchPolicy, **settings: Any) -> Simulated:
        calls.append(Call(timings, policy, settings, simulate(timings, policy, **settings)))
        return calls[-1].simulated

    bench = bench_of(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_policies, "simulate", simulated)
        reports = asyncio.run(bench.run(policies(NAMES)))
    return Compared(bench, reports, calls, said)


def passes_of(spans: Iterable[Span]) -> list[list[Span]]:
    """What was computed, pass by pass; the head only where a token is chosen."""
    passes: list[list[Span]] = []
    for span in spans:
        if span.actor == COMPUTE and span.what == "work":
            if (span.layer, span.group, span.part) == (0, "attn", 0):
                passes.append([])
            passes[-1].append(span)
    return passes


def test_every_policy_has_a_report_and_current_one_more_with_its_events_chained(compared: Compared) -> None:
    assert [report.measured.policy for report in compared.reports] == NAMES
    assert [report.simulated.policy for report in compared.reports] == NAMES
    assert [report.measured.policy for report in compared.reports if report.chained] == ["current"]
    assert list(compared.bench.recordings) == TITLES
    assert [call.policy.waits for call in compared.calls] == [
        "event", "blocking", "event", "chained", "chained", "chained"
    ]  # fmt: skip
    assert [text.partition(":")[0] for text in compared.said if text.endswith("opening the model")] == TITLES


def test_the_same_tokens_come_out_of_all_of_them(compared: Compared) -> None:
    expected = compared.bench.expected
    assert expected is not None
    assert len(expected.token_ids) == NEW_TOKENS
    for report in compared.by_title.values():
        assert report.token_ids == expected.token_ids
        assert 0 <= report.logprob_difference <= TOLERATED_DIFFERENCE
        assert (report.passes, report.batch_tokens) == (PASSES, BATCH_TOKENS)
    assert compared.reports[0].logprob_difference == 0, "it is the one that all are held against"


def test_the_prompt_fills_a_warm_up_and_the_measured_passes(compared: Compared) -> None:
    expected = compared.bench.expected
    assert expected is not None
    assert len(expected.prompt_token_ids) == (1 + PASSES) * BATCH_TOKENS
    for recording in compared.bench.recordings.values():
        assert recording.configuration["max_tokens_per_pass"] == BATCH_TOKENS
        passes = passes_of(recording.spans)
        assert len(passes) == 1 + PASSES + NEW_TOKENS - 1
        assert len({(span.layer, span.group) for span in passes[-1]}) == recording.configuration["groups_per_pass"]
        read = {(span.layer, span.group) for span in recording.spans if (span.actor, span.what) == (DISK, "work")}
        assert len(read) == recording.configuration["groups_per_pass"], "what opening has read, too"


def test_the_total_is_of_the_measured_passes_alone(compared: Compared) -> None:
    for (title, report), call in zip(compared.by_title.items(), compared.calls, strict=True):
        measured, simulated = compared.bench.recordings[title].spans, call.simulated.trace.spans
        for spans, row in ((measured, report.measured), (simulated, report.simulated)):
            ends = [max(span.ended for span in computed) for computed in passes_of(spans)]
            assert row.total_ms == pytest.approx((ends[PASSES] - ends[0]) * 1000), title


def test_triggers_say_what_they_asked_for_measured_and_simulated_alike(compared: Compared) -> None:
    rows = compared.by_title
    for kind in ("measured", "simulated"):
        asked = {
            title: tuple(getattr(rows[title], kind).groups_requested.values())
            for title in ("history", "stage3", "current")
        }
        assert asked == {"history": (0, 1), "current": (0, 1), "stage3": (3, 2)}
        assert getattr(rows["stage3"], kind).depth_used == 2, "of 6 slots, each layer takes 2, and 1 computes"


def test_the_simulation_runs_the_fitted_policy_on_what_was_measured(compared: Compared) -> None:
    expected = {"passes": 1 + PASSES, "gpu_groups": SETTINGS["gpu_groups"], "host_groups": SETTINGS["host_groups"]}
    for (title, report), (timings, policy, settings, _) in zip(compared.by_title.items(), compared.calls, strict=True):
        recording = compared.bench.recordings[title]
        assert settings == {**settings, **expected}
        assert policy.name == report.measured.policy
        if title == "stage3":
            assert policy == POLICIES[title].fit({"attn": 3, "ffn": 3}) != POLICIES[title], "clipped to 6 slots"
        assert timings.check_seconds == report.measured.host_blocked_ms / 1000
        assert timings.one_link
        for pass_, spans in enumerate(passes_of(recording.spans)):
            keys = dict.fromkeys((span.layer, span.group) for span in spans)
            for key in keys:
                took = sum(span.ended - span.started for span in spans if (span.layer, span.group) == key)
                assert timings.seconds(COMPUTE, pass_, key) == pytest.approx(took)
    assert compared.by_title["stage1"].measured.host_blocked_ms > 0
    assert compared.by_title["stage3"].measured.host_blocked_ms == 0


def test_the_error_is_that_of_the_simulation_with_its_sign(compared: Compared) -> None:
    some = compared.reports[0]
    measured, simulated = replace(some.measured, total_ms=200.0), replace(some.simulated, total_ms=150.0)
    assert replace(some, measured=measured, simulated=simulated).error == -0.25
    assert replace(some, measured=simulated, simulated=measured).error == pytest.approx(1 / 3)
    for report in compared.by_title.values():
        assert report.error == report.simulated.total_ms / report.measured.total_ms - 1


def test_as_plain_values(compared: Compared) -> None:
    for report in compared.reports:
        row = report.as_dict()
        more = {
            "simulated": report.simulated.as_dict(),
            "error": report.error,
            "passes": PASSES,
            "batch_tokens": BATCH_TOKENS,
            "token_ids": list(report.token_ids),
            "logprob_difference": report.logprob_difference,
            "pass_seconds": list(report.pass_seconds),
        }
        if report.chained is not None:
            more["chained"] = report.chained.as_dict()
        assert row == report.measured.as_dict() | more
        assert len(report.pass_seconds) == PASSES
        assert min(report.pass_seconds) > 0
        assert ("chained" in row) == (report.measured.policy == "current")


def shifted(output: Output, by: float) -> Output:
    logprobs = tuple({token: value + by for token, value in each.items()} for each in output.logprobs or ())
    return replace(output, logprobs=logprobs)


def test_other_tokens_than_those_of_the_first_policy_are_refused(compared: Compared) -> None:
    expected = compared.bench.expected
    assert expected is not None
    first, second = expected.token_ids
    bench = bench_of([], replace(expected, token_ids=(first, second + 1)))
    with pytest.raises(OutputsDiffer) as caught:
        asyncio.run(bench.run(policies(["history"])))
    assert str(caught.value).startswith(
        f"history: need the tokens ({first}, {second + 1}) of the first policy, have ({first}, {second})"
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_log_probabilities_may_differ_by_as_much_as_rounding_does(compared: Compared, sign: int) -> None:
    expected = compared.bench.expected
    assert expected is not None
    near, far = (shifted(expected, sign * (TOLERATED_DIFFERENCE + more)) for more in (-0.01, 0.01))
    (report,) = asyncio.run(bench_of([], near).run(policies(["history"])))
    assert report.logprob_difference == pytest.approx(TOLERATED_DIFFERENCE - 0.01, abs=1e-3)
    with pytest.raises(OutputsDiffer, match=r"history: .* log-probabilities up to 0\.26 apart"):
        asyncio.run(bench_of([], far).run(policies(["history"])))


def test_the_chained_half_of_current_is_held_against_the_first_too(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench_policies.recorded_run

    async def wrong(folder: Path, settings: Mapping[str, Any], *more: Any) -> tuple[Any, Any, Output]:
        runtime, trace, output = await run(folder, settings, *more)
        is_wrong = settings["policy"] == CURRENT_CHAINED
        return runtime, trace, replace(output, token_ids=(0, 0)) if is_wrong else output

    monkeypatch.setattr(bench_policies, "recorded_run", wrong)
    with pytest.raises(OutputsDiffer, match=r"^current, chained: need the tokens .* have \(0, 0\)"):
        asyncio.run(bench_of([]).run(policies(["current"])))


def test_more_tokens_than_a_context_has_are_refused_by_the_options_to_change() -> None:
    with pytest.raises(ConfigError, match=r"--batch-tokens: 4 passes of 400 tokens need 1602 positions, .* --passes"):
        asyncio.run(PolicyBench(BUNDLED, SETTINGS, 3, 400, print).run(policies(["history"])))


@pytest.mark.parametrize(
    ("busy", "passes", "trials", "tokens"),
    [
        ({DISK: 2.0, COMPUTE: 4.0}, 2, [32, 16], 8),
        ({DISK: 1.0, LINK: 6.0, COMPUTE: 4.0}, 2, [32, 48], 72),
        ({DISK: 6.0, LINK: 1.0, COMPUTE: 4.0}, 2, [32, 48], 72),
        ({DISK: 6.0, LINK: 1.0, COMPUTE: 4.0}, 18, [32, 48], POSITIONS // 20),
        ({DISK: 1.0, COMPUTE: 1000.0}, 2, [32, 1], 1),
    ],
    ids=["computing is slower", "H2D is slower", "the disk is slower", "the context ends", "at least one"],
)
def test_a_balanced_pass_computes_for_as_long_as_its_slower_transfer_takes(
    busy: dict[str, float],
    passes: int,
    trials: list[int],
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def measured(spans: Sequence[Span], started: float, ended: float) -> dict[str, float]:
        work = [span for span in spans if span.actor == COMPUTE and span.what == "work"]
        assert started <= min(span.started for span in work)
        assert ended >= max(span.ended for span in work)
        return busy

    monkeypatch.setattr(bench_policies, "busy_seconds", measured)
    assert asyncio.run(measured_balance(BUNDLED, SETTINGS, passes, said.append)) == tokens
    assert said == [f"choosing the tokens per pass: a trial with {trial}" for trial in trials]
