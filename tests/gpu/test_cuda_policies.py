"""Every policy on a GPU: the same tokens, micro-batches on two streams, and uploads whose event is lost."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.events import LostEvent

from actors.core.event import Event
from actors.core.trace import Span
from pipeline import Model, Output
from pipeline.devices.cuda import CudaDevice
from pipeline.engine.policies import CURRENT_CHAINED, POLICIES

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("everything_moves")]

PROMPT = tiny_models.PROMPT * 5
ROWS = [*POLICIES.values(), CURRENT_CHAINED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_models.save("llama_gqa_llama3", folder, shards=2, dtype=torch.float32)
    return folder


async def generate(folder: Path, **settings: Any) -> tuple[Output, list[Span]]:
    opening = Model.open(folder, device="cuda", max_tokens_per_pass=16, **settings)
    async with opening as model, model.recording() as trace:
        output = await model.generate(PROMPT, max_new_tokens=6, ignore_eos=True, logprobs=tiny_models.VOCABULARY_SIZE)
    return output, list(trace.spans)


@pytest.mark.parametrize("gpu_groups", [1, 2, 5, 10])
async def test_every_policy_gives_the_same_output(gpu_groups: int, folder: Path) -> None:
    expected, _ = await generate(folder)
    for policy in ROWS:
        output, _ = await generate(folder, policy=policy, gpu_groups=gpu_groups, host_groups=gpu_groups)
        if policy.micro_batches == 1:
            assert output == expected, policy.name
        else:
            assert output.token_ids == expected.token_ids
            for have, need in zip(output.logprobs or (), expected.logprobs or (), strict=True):
                assert have == pytest.approx(need, abs=1e-3)


async def test_many_micro_batches_share_one_pass(folder: Path) -> None:
    """Activations go from stream to stream: reused too early, they would change the tokens sooner or later."""
    expected, _ = await generate(folder)
    for micro_batches in (2, 3, 8):
        policy = replace(POLICIES["stage3"], micro_batches=micro_batches)
        for _ in range(5):
            output, spans = await generate(folder, policy=policy, gpu_groups=10)
            assert output.token_ids == expected.token_ids
        assert max(span.part for span in spans) == micro_batches - 1


class LosesUploads(CudaDevice):
    """Tells nobody when some of its uploads of weights have ended, and does not even do the others of these."""

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
    monkeypatch.setattr("pipeline.devices.open.CudaDevice", LosesUploads)
    policy = replace(POLICIES["stage2"], fallback_seconds=0.02)
    with caplog.at_level(logging.WARNING, logger="penstock"):
        output, _ = await generate(folder, policy=policy)
    assert output == expected
    assert caplog.text.count("overdue; loading the group again") >= 3
