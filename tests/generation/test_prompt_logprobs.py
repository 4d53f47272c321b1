"""`prompt_logprobs`: what a model makes of each token of a prompt, as transformers has it, whatever the passes are."""

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.scored_prompts import MOST, PROMPTS, ROOM, ask
from transformers import PreTrainedModel

from actors.core.message import READY
from pipeline import Model, Output, RequestError
from pipeline.devices.cpu import CpuDevice
from pipeline.generation.prompt_scores import PromptScorer, ScoredRows
from pipeline.models import decoder
from pipeline.models.row_blocks import RowBlocks

SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_tokens_per_pass": 7, "policy": "stage3"},
    {"device": "cpu-copy", "max_requests": 2, "batch_invariant": True},
    {"device": "cpu-copy", "max_tokens_per_pass": 61, "policy": "stage2"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen3")


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return tiny_models.save_and_read("qwen3", folder)


async def test_they_are_those_of_transformers_alone_in_company_and_however_a_prompt_is_cut(
    folder: Path, reference: PreTrainedModel
) -> None:
    found: list[list[Output]] = []
    async with asyncio.timeout(60), Model.open(folder, **ROOM) as model:
        found.append([await ask(model, index) for index in range(len(PROMPTS))])
        slices = sum(key[1].startswith("head") for key in model.runtime.section.order)
        assert slices > 1
    for settings in SETTINGS:
        async with asyncio.timeout(60), Model.open(folder, **{**ROOM, **settings}) as model:
            found.append(await asyncio.gather(*(ask(model, index) for index in range(len(PROMPTS)))))
    assert all(outputs == found[0] for outputs in found[1:])
    for prompt, most, output in zip(PROMPTS, MOST, found[0], strict=True):
        expected_TV = tiny_models.logits(reference, prompt).log_softmax(-1)
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(prompt)
        assert output.prompt_logprobs[0] is None
        for token_id, logprobs, expected_V in zip(prompt[1:], output.prompt_logprobs[1:], expected_TV, strict=False):
            assert logprobs is not None
            best = expected_V.topk(most)
            assert logprobs.keys() == {token_id, *best.indices.tolist()}
            assert [*logprobs][:most] == best.indices.tolist()
            torch.testing.assert_close(torch.tensor([*logprobs.values()]), expected_V[[*logprobs]], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("reference")
async def test_a_prompt_is_scored_whatever_is_cached_of_it_and_may_be_all_that_is_asked_for(folder: Path) -> None:
    async with asyncio.timeout(60), Model.open(folder, **ROOM) as model:
        expected = await ask(model, 0)
        await ask(model, 0, prompt_logprobs=None, cache_scope="a")
        scored = await ask(model, 0, cache_scope="a")
        assert (scored, scored.cached_tokens) == (expected, 0)
        assert (await ask(model, 4, cache_scope="a")).cached_tokens == 0
        after = await ask(model, 4, prompt_logprobs=None, cache_scope="a")
        assert after.cached_tokens == 48, "what a scored request has computed is found"
        samples = [await ask(model, 0, n=2), await ask(model, 0, n=2, max_new_tokens=0)]
        assert [one.prompt_logprobs for one in itertools.chain(*samples)] == 4 * [expected.prompt_logprobs]
        chunks = [chunk async for chunk in model.stream(PROMPTS[0], max_new_tokens=3, prompt_logprobs=20)]
        assert [chunk.prompt_logprobs for chunk in chunks] == [expected.prompt_logprobs, None, None]
        (only,) = [chunk async for chunk in model.stream(PROMPTS[0], max_new_tokens=0, prompt_logprobs=20)]
        assert (only.text, only.token_ids, only.finish_reason) == ("", (), "length")
        assert only.prompt_logprobs == expected.prompt_logprobs
        many = await asyncio.gather(*(ask(model, 3, max_new_tokens=0) for _ in range(100)))
        assert {one.prompt_logprobs for one in many} == {(None,)}, "more than share a pass"
        with pytest.raises(RequestError, match=r"^max_new_tokens: need a whole number from 1 to \d+; have 0"):
            await ask(model, 0, max_new_tokens=0, prompt_logprobs=None)


@pytest.mark.usefixtures("reference")
async def test_logits_that_are_not_finite_end_the_request_that_is_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_slice = decoder.output_slice

    def overflowing(outside: Any, weights: Any, normed_TD: torch.Tensor) -> torch.Tensor:
        logits_TV = output_slice(outside, weights, normed_TD)
        if len(normed_TD) > 90:
            logits_TV[40, 7] = math.nan
        return logits_TV

    monkeypatch.setattr(decoder, "output_slice", overflowing)
    async with asyncio.timeout(60), Model.open(folder, **ROOM) as model:
        for _ in range(2):
            with pytest.raises(RequestError, match=r"^numerical: need finite logits; have others for token 41 of the"):
                await ask(model, 0)
            await ask(model, 5)


@torch.inference_mode()
def test_of_slices_rows_keep_their_sum_their_own_logit_and_the_greatest() -> None:
    logits_RV = torch.randn(40, 9000, generator=torch.Generator().manual_seed(1)) * 5
    scorer, scored = PromptScorer(CpuDevice(), RowBlocks(), 40, 40), ScoredRows([], True, READY)
    scorer._inputs_RI[:, 1] = torch.arange(0, 9000, 225)
    for begin, end in ((0, 20), (20, 40)):
        for first, last in ((0, 10), (10, 5001), (5001, 9000)):
            scorer.add(scored, begin, end, first, logits_RV[begin:end, first:last].contiguous())
    sum_R, own_R, values_RK, ids_RK = scorer._numbers_RC.split((1, 1, 20, 20), 1)
    expected = logits_RV.topk(20)
    torch.testing.assert_close(sum_R[:, 0], logits_RV.double().logsumexp(1), atol=1e-9, rtol=0)
    assert torch.equal(own_R[:, 0].float(), logits_RV[torch.arange(40), torch.arange(0, 9000, 225)])
    assert torch.equal(values_RK.float(), expected.values)
    assert torch.equal(ids_RK.long(), expected.indices)
