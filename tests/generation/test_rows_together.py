"""Rows that are set otherwise share a pass: each gets what it would get alone, and nothing else is fetched."""

from collections.abc import Sequence
from typing import Any

import pytest
import support.choosing
import torch
from support.choosing import RUNNER, VOCABULARY_SIZE, WARPED, Chooser, company_changes_nothing, random_logits
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from actors.core.ports import Copy
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.sampling import Choice

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_rows_that_are_set_otherwise_draw_in_one_batch_what_transformers_keeps(spread: float) -> None:
    """Each by its own random number, from the least id on, in fp64."""
    settings, prompt = 3 * WARPED, (1, 5, 2999, 17)
    chooser = Chooser(VOCABULARY_SIZE, rows=len(settings))
    samplers = [support.choosing.sampler(VOCABULARY_SIZE, prompt, seed=i, **one) for i, one in enumerate(settings)]
    for step in range(4):
        logits_RV = torch.stack([random_logits(100 * step + row, spread=spread) for row in range(len(settings))])
        kept_RV = logits_RV.clone()
        for outcome, row in zip(RUNNER.run(chooser.outcomes(samplers, logits_RV)), range(len(settings)), strict=True):
            assert isinstance(outcome, Choice)
            own, sampler = settings[row], samplers[row]
            ids = torch.tensor([[*prompt, *sampler.token_ids]])
            scores_V = RepetitionPenaltyLogitsProcessor(own.get("repetition_penalty", 1.0))(
                ids, logits_RV[row : row + 1]
            )
            if "temperature" not in own:
                assert outcome.token_id == int(scores_V.argmax())
            else:
                for warper in (
                    TemperatureLogitsWarper(float(own["temperature"])),
                    TopKLogitsWarper(own.get("top_k", VOCABULARY_SIZE)),
                    TopPLogitsWarper(own.get("top_p", 1.0)),
                    MinPLogitsWarper(own.get("min_p", 0.0)),
                ):
                    scores_V = warper(NO_IDS, scores_V)
                sums_V = scores_V[0].double().softmax(-1).cumsum(-1)
                assert sums_V[outcome.token_id] > sampler.uniform - 1e-4
                assert (
                    sums_V[outcome.token_id] - scores_V[0].double().softmax(-1)[outcome.token_id]
                    < sampler.uniform + 1e-4
                )
            sampler.took(outcome.token_id)
        assert torch.equal(logits_RV, kept_RV)


@pytest.mark.parametrize("copy", [False, True])
async def test_a_row_is_the_same_alone_and_among_others_and_when_its_pass_is_computed_once_more(copy: bool) -> None:
    await company_changes_nothing(lambda: CpuDevice(copy=copy))


async def test_only_what_was_asked_for_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    download = CpuDevice.download

    def counted(self: CpuDevice, source: Any, target: Any, copies: Sequence[Copy], after: Any) -> Any:
        copied.extend(copy.length for copy in copies)
        return download(self, source, target, copies, after)

    monkeypatch.setattr(CpuDevice, "download", counted)
    chooser = Chooser(5000, 5, CpuDevice(copy=True))
    samplers = [
        support.choosing.sampler(5000, logprobs=logprobs, temperature=1.0) for logprobs in (None, None, 0, 2, 2)
    ]
    await chooser.choose(samplers, torch.randn(5, 5000))
    assert copied == [8 * (5 * 4 + 1 + 2 * 5)]
    copied.clear()
    processed = support.choosing.sampler(5000, logits_processor=lambda ids, logits: logits)
    await chooser.choose([*samplers[:3], processed], torch.randn(4, 5000))
    assert copied == [8 * (3 * 4 + 1), 4 * 5000]


async def test_numbers_that_did_not_arrive_choose_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = Chooser(VOCABULARY_SIZE, 1, CpuDevice(copy=True))
    upload = CpuDevice.upload

    def broken(self: CpuDevice, source: Any, target: Any, copies: Sequence[Copy], after: Any) -> Any:
        if source is chooser.rows._host_numbers:
            return self.launch("broken", lambda: 1 / 0, ())
        return upload(self, source, target, copies, after)

    monkeypatch.setattr(CpuDevice, "upload", broken)
    for settings in ({}, {"repetition_penalty": 1.5}):  # the second sends a table behind its numbers
        with pytest.raises(ZeroDivisionError):
            await chooser.choose(
                [support.choosing.sampler(VOCABULARY_SIZE, (1,), **settings)], torch.randn(1, VOCABULARY_SIZE)
            )
    await chooser.aclose()
