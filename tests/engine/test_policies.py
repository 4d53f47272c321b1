"""The table of policies against the analysis that it comes from, and how a policy is found."""

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.scripted_policy import ScriptedPolicy
from support.small_lines import layer_timings

from actors.core.ports import Ask, Half, PrefetchPolicy, Priority
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES, Policy, Want, find_policy
from pipeline.errors import ConfigError
from pipeline.tools.simulation.sim_line import simulate

HIGH, MEDIUM = Priority.HIGH, Priority.MEDIUM
OWN_FFN = [Ask("ffn", 7, HIGH)]
NEXT_ATTN = [Ask("attn", 8, HIGH)]
ATTN_AHEAD = [Ask("attn", layer, MEDIUM) for layer in (8, 9, 10, 11)]
FFN_AHEAD = [Ask("ffn", layer, MEDIUM) for layer in (8, 9, 10, 11)]

ASKS: dict[str, tuple[list[Ask], list[Ask]]] = {
    "history1": (ATTN_AHEAD, FFN_AHEAD),
    "history": ([], NEXT_ATTN),
    "current": ([], NEXT_ATTN),
    "stage1": (OWN_FFN + ATTN_AHEAD, FFN_AHEAD),
    "stage2": (OWN_FFN + ATTN_AHEAD, FFN_AHEAD),
    "stage3": (OWN_FFN + ATTN_AHEAD, FFN_AHEAD),
    "backpressure": ([], []),
}
"""At the start of attn, and of ffn, of layer 7."""
FOR_EACH = pytest.mark.parametrize("name", ASKS)


def test_the_table_has_the_seven_rows() -> None:
    assert list(POLICIES) == list(ASKS)
    assert all(row.name == name for name, row in POLICIES.items())


@FOR_EACH
def test_what_a_row_asks_for_at_each_trigger(name: str) -> None:
    asked = [list(POLICIES[name].at_start(Half(kind, 7, held=3))) for kind in ("attn", "ffn")]
    assert asked == list(ASKS[name])


@pytest.mark.parametrize("name", ["history1", "stage1", "stage2", "stage3"])
@pytest.mark.parametrize("depth", [0, 1, 6])
def test_depth_is_a_parameter(name: str, depth: int) -> None:
    row = replace(POLICIES[name], depth=depth)
    layers = [ask.layer for ask in row.at_start(Half("attn", 2, held=3)) if ask.kind == "attn"]
    assert layers == list(range(3, 3 + depth))
    assert len(row.at_start(Half("ffn", 2, held=3))) == depth


@pytest.mark.parametrize(("held", "asks"), [(1, NEXT_ATTN), (7, NEXT_ATTN), (8, []), (9, [])])
@pytest.mark.parametrize("name", ["history", "current"])
def test_the_group_limit_leaves_room_for_two_below_ten(name: str, held: int, asks: list[Ask]) -> None:
    assert list(POLICIES[name].at_start(Half("ffn", 7, held))) == asks


@pytest.mark.parametrize("name", ["history1", "stage1", "stage2", "stage3", "backpressure"])
def test_the_others_have_no_group_limit(name: str) -> None:
    assert [list(POLICIES[name].at_start(Half(kind, 7, held=99))) for kind in ("attn", "ffn")] == list(ASKS[name])


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        # waits, fallback_seconds, micro_batches, warmup_layers, kv_ahead, triggered
        ("history1", ("blocking", None, 1, 1, True, True)),
        ("history", ("event", None, 1, 0, False, True)),
        ("current", ("event", None, 1, 0, False, True)),
        ("stage1", ("blocking", None, 1, 1, True, True)),
        ("stage2", ("event", 0.1, 1, 1, True, True)),
        ("stage3", ("chained", None, 2, 1, True, True)),
        ("backpressure", ("chained", None, 1, 0, True, False)),
    ],
)
def test_the_other_columns(name: str, columns: tuple[object, ...]) -> None:
    row = POLICIES[name]
    assert columns == (
        *(row.waits, row.fallback_seconds, row.micro_batches),
        *(row.warmup_layers, row.kv_ahead, row.triggered),
    )


def test_current_is_measured_both_ways() -> None:
    assert replace(POLICIES["current"], waits="chained") == CURRENT_CHAINED


def test_the_warm_up_is_whole_layers_in_compute_order() -> None:
    row = replace(POLICIES["history1"], warmup_layers=2)
    assert list(row.warmup()) == [Ask("attn", 0), Ask("ffn", 0), Ask("attn", 1), Ask("ffn", 1)]
    assert [list(POLICIES[name].warmup()) for name in ("history", "current", "backpressure")] == [[], [], []]


@pytest.mark.parametrize("name", ["history1", "stage1", "stage2", "stage3"])
@pytest.mark.parametrize(
    ("slots", "depth", "layers"),
    [
        ({"attn": 4, "ffn": 4}, 3, 1),
        ({"attn": 2, "ffn": 3}, 1, 1),
        ({"attn": 5, "ffn": 2}, 1, 1),
        ({"attn": 1, "ffn": 2}, 0, 1),
        ({"ffn": 7}, 2, 1),
        ({"ffn": 2}, 0, 1),
        ({"ffn": 1}, 0, 0),
    ],
)
def test_a_row_is_clipped_to_the_slots_and_says_so(
    name: str, slots: dict[str, int], depth: int, layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = POLICIES[name].fit(slots)
    assert fitted == replace(POLICIES[name], depth=depth, warmup_layers=layers)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("penstock", logging.WARNING)
    assert f"policy {name}: depth clipped from 4 to {depth} and warm-up from 1 to {layers}" in record.getMessage()
    assert f"{sum(slots.values())} slots" in record.getMessage()


def test_the_warm_up_is_clipped_too(caplog: pytest.LogCaptureFixture) -> None:
    fitted = replace(POLICIES["stage1"], warmup_layers=9).fit({"attn": 5, "ffn": 6})
    assert (fitted.depth, fitted.warmup_layers) == (4, 5)
    assert "warm-up from 9 to 5 layers" in caplog.text


@FOR_EACH
def test_what_fits_is_left_alone_in_silence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert POLICIES[name].fit({"attn": 5, "ffn": 5}) == POLICIES[name]
    assert not caplog.records


@pytest.mark.parametrize("name", ["history", "current", "backpressure"])
def test_rows_of_a_fixed_depth_are_never_clipped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert POLICIES[name].fit({"attn": 1, "ffn": 1}) == POLICIES[name]
    assert not caplog.records


@FOR_EACH
def test_a_row_that_fits_is_never_refused_a_slot(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a single host slot, which must hold either kind, the device slots are of one kind too."""
    for gpu_groups, host_groups in [(2, 2), (3, 2), (4, 9), (5, 5), (8, 3), (11, 11), (10, 1), (4, 1)]:
        run = simulate(
            layer_timings(layers=7), POLICIES[name], passes=2, gpu_groups=gpu_groups, host_groups=host_groups
        )
        assert run.policy.name == name
    assert "no slot yet" not in caplog.text


@FOR_EACH
def test_every_row_keeps_to_the_protocol(name: str) -> None:
    row: PrefetchPolicy = POLICIES[name]
    assert isinstance(row, PrefetchPolicy)
    assert isinstance(ScriptedPolicy(), PrefetchPolicy)
    assert not isinstance(name, PrefetchPolicy)


@FOR_EACH
def test_a_row_is_found_by_its_name(name: str) -> None:
    assert find_policy(name) is POLICIES[name]


@pytest.mark.parametrize("policy", [ScriptedPolicy(), replace(POLICIES["stage2"], depth=2)], ids=["own", "row"])
def test_a_policy_of_the_users_passes_through(policy: PrefetchPolicy) -> None:
    assert find_policy(policy) is policy


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"policy: unknown policy 'stage_2'; did you mean 'stage2'\?"):
        find_policy("stage_2")
    with pytest.raises(ConfigError, match="unknown policy 'xyz'; known are history1, history, current, stage1"):
        find_policy("xyz")


class Elsewhere(ScriptedPolicy):
    """Stands for a class that another package offers."""


INSTANCE = ScriptedPolicy(name="eager")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two policies of another package, and which groups of entry points were asked for."""
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, f"{__name__}:{target}", "pipeline.policies")
        for name, target in {
            "elsewhere": "Elsewhere",
            "eager": "INSTANCE",
            "wrong": "HIGH",
            "broken": "NOTHING",
        }.items()
    )
    asked: list[str] = []

    def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
        asked.append(group)
        return points.select(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


def test_an_installed_policy_is_found_by_its_name(installed: list[str]) -> None:
    assert isinstance(find_policy("elsewhere"), Elsewhere), "a class is called"
    assert find_policy("eager") is INSTANCE, "an object is taken"
    assert installed == ["pipeline.policies"] * 2
    with pytest.raises(ConfigError, match=r"entry point 'broken' of group pipeline\.policies failed: AttributeError"):
        find_policy("broken")
    with pytest.raises(ConfigError, match="did you mean 'elsewhere'"):
        find_policy("elsewere")
    with pytest.raises(ConfigError, match=r"known are history1, .*backpressure, broken, eager, elsewhere"):
        find_policy("xyz")


def test_a_row_of_the_table_needs_no_look_at_what_is_installed(installed: list[str]) -> None:
    assert find_policy("stage1") is POLICIES["stage1"]
    assert installed == []


def test_what_is_no_policy_is_refused(installed: list[str]) -> None:
    with pytest.raises(ConfigError, match="need a name or a PrefetchPolicy"):
        find_policy("wrong")
    with pytest.raises(ConfigError, match=r"need a name or a PrefetchPolicy.* have 4"):
        find_policy(4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="policy scripted: need waits of blocking, event, chained"):
        find_policy(ScriptedPolicy(waits="never"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1 micro-batch, have 'event' and 0"):
        find_policy(ScriptedPolicy(micro_batches=0))


def test_a_policy_of_the_users_decides_what_travels_when() -> None:
    """It asks for the next two halves, whichever they are: with a slot for each, nothing else is needed."""

    def next_two(half: Half) -> Sequence[Ask]:
        if half.kind == "attn":
            return [Ask("ffn", half.layer, HIGH), Ask("attn", half.layer + 1)]
        return [Ask("attn", half.layer + 1, HIGH), Ask("ffn", half.layer + 1)]

    timings = layer_timings(layers=20, disk_ms=0)
    for policy, layer_seconds in ((ScriptedPolicy(), 0.4), (ScriptedPolicy(next_two), 0.2)):
        run = simulate(timings, policy, gpu_groups=4)
        assert run.policy is policy
        starts = [
            span.started
            for span in sorted(run.trace.spans, key=lambda span: span.seq)
            if (span.actor, span.what, span.group) == ("compute_scheduler", "work", "attn")
        ]
        assert (starts[15] - starts[5]) / 10 == pytest.approx(layer_seconds)
    assert run.asked == {"attn": 2, "ffn": 2}


def test_a_row_of_the_users_is_made_of_the_same_parts() -> None:
    both = (Want("attn", 1, 1, HIGH), Want("ffn", 1, None))
    row = Policy(name="mine", at_ffn=both, depth=2)
    assert list(row.at_start(Half("ffn", 3, held=1))) == [Ask("attn", 4, HIGH), Ask("ffn", 4), Ask("ffn", 5)]
    assert list(row.at_start(Half("attn", 3, held=1))) == []


@FOR_EACH
def test_the_most_that_a_run_asks_for_is_what_the_analysis_says(name: str) -> None:
    """Its row "groups asked for during MHA / during FFN"."""
    asked = simulate(layer_timings(layers=20), POLICIES[name], gpu_groups=10).asked
    expected = {"history1": (4, 4), "history": (0, 1), "current": (0, 1), "backpressure": (None, None)}
    assert (asked.get("attn"), asked.get("ffn")) == expected.get(name, (5, 4))
