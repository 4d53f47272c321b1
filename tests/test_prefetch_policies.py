"""Every policy on the real device: the same tokens, the overdue upload, micro-batches, and a user's own policy."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.cases import EVERYTHING
from support.events import LostEvent

from actors.core.event import Event
from actors.core.ports import Ask, Half
from actors.core.trace import Span
from pipeline import ConfigError, Model, Output
from pipeline.devices.cpu import CpuDevice
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES
from pipeline.models import decoder

pytestmark = pytest.mark.usefixtures("everything_moves")
PROMPT = tiny_models.PROMPT * 5
ROWS = [*POLICIES.values(), CURRENT_CHAINED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder, shards=2, dtype=torch.float32)
    return folder


async def generate(folder: Path, **settings: Any) -> tuple[Output, list[Span]]:
    async with Model.open(folder, max_tokens_per_pass=16, **settings) as model, model.recording() as trace:
        output = await model.generate(PROMPT, max_new_tokens=6, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)
    return output, list(trace.spans)


@pytest.mark.parametrize(
    ("device", "gpu_groups"),
    [("cpu", 1), ("cpu-copy", 2), *([("cpu", 5), ("cpu-copy", 10)] if EVERYTHING else [])],
    ids=str,
)
async def test_every_policy_gives_the_same_output(device: str, gpu_groups: int, folder: Path) -> None:
    expected, _ = await generate(folder)
    for policy in ROWS:
        output, _ = await generate(folder, policy=policy, device=device, gpu_groups=gpu_groups, host_groups=gpu_groups)
        if policy.micro_batches == 1:
            assert output == expected, policy.name
        else:
            # Products of other shapes sum in another order.
            assert output.token_ids == expected.token_ids
            for have, need in zip(output.logprobs or (), expected.logprobs or (), strict=True):
                assert have == pytest.approx(need, abs=1e-4)


@pytest.mark.parametrize("queue", [1, 3])
async def test_queues_of_any_size_do(queue: int, folder: Path) -> None:
    expected, _ = await generate(folder)
    queues = dict.fromkeys(("disk_reader", "pinned_stager", "gpu_uploader", "compute_scheduler"), queue)
    for policy in ROWS:
        output, _ = await generate(folder, policy=policy, device="cpu-copy", gpu_groups=6, queues=queues)
        assert output.token_ids == expected.token_ids, policy.name


async def test_micro_batches_compute_on_a_lane_for_each_half(folder: Path) -> None:
    policy = replace(POLICIES["stage3"], micro_batches=3)
    output, spans = await generate(folder, policy=policy)
    assert output.token_ids == (await generate(folder))[0].token_ids
    passes: dict[tuple[int, int, str], set[int]] = {}
    for span in spans:
        if span.actor == "compute_scheduler" and span.what == "work":
            passes.setdefault((span.seq, span.layer, span.group), set()).add(span.part)
    halves = [parts for (_, _, group), parts in passes.items() if group in ("attn", "ffn")]
    assert {frozenset(parts) for parts in halves} == {frozenset({0, 1, 2}), frozenset({0})}, "one token is one part"


async def test_a_micro_batch_fails_with_the_one_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tells how the pass has ended; computed on without the keys of the first, its tokens would be others."""
    expected, _ = await generate(folder)
    attention_half, failures = decoder.attention_half, ["in the first micro-batch of a pass"]

    def fails_once(config: Any, weights: Any, hidden_TD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(hidden_TD) > 1 and failures:
            raise ValueError(failures.pop())
        return attention_half(config, weights, hidden_TD, *arguments)

    async with Model.open(folder, max_tokens_per_pass=16, policy="stage3") as model:
        monkeypatch.setattr(decoder, "attention_half", fails_once)
        output = await model.generate(PROMPT, max_new_tokens=6, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)
    assert not failures
    for have, need in zip(output.logprobs or (), expected.logprobs or (), strict=True):
        assert have == pytest.approx(need, abs=1e-4)


class LosesUploads(CpuDevice):
    """Tells nobody when some of its uploads have ended, and does not even do the others of these."""

    uploads = 0

    def upload(self, source: Any, target: Any, copies: Any, after: Any, vacant: Event | None = None) -> Event:
        if vacant is None:  # not a weight group
            return super().upload(source, target, copies, after, vacant)
        self.uploads += 1
        if self.uploads % 40 == 0:
            return LostEvent()
        event = super().upload(source, target, copies, after, vacant)
        return LostEvent() if self.uploads % 20 == 0 else event


async def test_an_upload_whose_event_is_lost_is_loaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = await generate(folder)
    devices: list[LosesUploads] = []

    def open_device(*_: object, **settings: Any) -> LosesUploads:
        devices.append(LosesUploads(copy=True))
        return devices[-1]

    monkeypatch.setattr("pipeline.devices.open.CpuDevice", open_device)
    policy = replace(POLICIES["stage2"], fallback_seconds=0.02)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        async with Model.open(folder, device="cpu-copy", max_tokens_per_pass=16, policy=policy) as model:
            output = await model.generate(
                PROMPT, max_new_tokens=6, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE
            )
            reloaded = model.statistics().groups_reloaded
    assert output == expected
    assert reloaded >= 3
    told = [record.message for record in caplog.records if "overdue; loading the group again" in record.message]
    assert len(told) == reloaded


@dataclass
class OneAhead:
    """A policy of a user's own: the next half-layer, whichever it is."""

    name: str = "one-ahead"
    triggered: bool = True
    waits: str = "chained"
    fallback_seconds: float | None = None
    micro_batches: int = 1
    kv_ahead: bool = True

    def fit(self, slots: Mapping[str, int]) -> "OneAhead":
        return self

    def warmup(self) -> Sequence[Ask]:
        return ()

    def at_start(self, half: Half) -> Sequence[Ask]:
        return [Ask("ffn", half.layer) if half.kind == "attn" else Ask("attn", half.layer + 1)]


async def test_a_users_own_policy_runs(folder: Path) -> None:
    expected, _ = await generate(folder)
    assert (await generate(folder, policy=OneAhead()))[0] == expected
    async with Model.open(folder, policy=OneAhead()) as model:
        assert model.statistics().policy == "one-ahead"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("histroy1", "did you mean 'history1'"),
        (4, "need a name or a PrefetchPolicy"),
        (OneAhead(waits="sometimes"), "need waits of blocking, event, chained"),
        (OneAhead(micro_batches=0), "at least 1 micro-batch"),
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused_before_any_work(policy: Any, told: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        Model.open(folder, policy=policy)


async def test_a_depth_that_does_not_fit_is_clipped_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="penstock"):
        async with Model.open(folder, policy="history1", gpu_groups=6) as model:
            assert model.runtime.policy.depth == 2  # type: ignore[attr-defined]
    assert "depth clipped from 4 to 2" in caplog.text
