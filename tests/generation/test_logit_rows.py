"""A sequence may ask for the logits of several of its positions: the real program, against transformers."""

import asyncio
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support import tiny_models
from transformers import PreTrainedModel

from pipeline import Model, RequestError
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.samples import outputs_of
from pipeline.generation.sequence import RunningSequence

ROWS = {3: tiny_models.PROMPT, 1: tiny_models.PROMPT[:5], 2: tiny_models.PROMPT[3:9]}
"""The prompt of each sequence, by the rows of logits that it asks for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen3")


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return tiny_models.save_and_read("qwen3", folder)


def sequence(model: Model, prompt: Sequence[int], rows: int) -> RunningSequence:
    parameters = SamplingParameters(max_new_tokens=2, ignore_eos=True)
    vocabulary_size = model.runtime.config.vocabulary_size
    made = RunningSequence(array("i", prompt), parameters, frozenset(), None, vocabulary_size)
    made.logit_rows = rows
    return made


def watch(model: Model) -> dict[RunningSequence, list[torch.Tensor]]:
    """The rows of logits of each sequence, pass by pass, from now on."""
    section, seen = model.runtime.section, defaultdict[RunningSequence, list[torch.Tensor]](list)
    finish = section.finish

    async def watched(pass_: GenerationPass) -> None:
        pieces = pass_.choosing
        await finish(pass_)
        rows = section._buffers.logits(0, 6)
        for piece, logits_RV in zip(
            pieces, rows[: sum(counts := [one.logit_rows for one in pieces])].split(counts), strict=True
        ):
            seen[piece.sequence].append(logits_RV.clone())

    section.finish = watched  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(("device", "policy"), [("cpu", "backpressure"), ("cpu-copy", "stage3")])
async def test_rows_of_several_positions_are_those_of_transformers(
    device: str, policy: str, folder: Path, reference: PreTrainedModel
) -> None:
    async with asyncio.timeout(30), Model.open(folder, device=device, policy=policy, max_requests=6) as model:
        seen = watch(model)
        sequences = [sequence(model, prompt, rows) for rows, prompt in ROWS.items()]
        model.runtime.admission.submit(sequences)
        outputs = [(await outputs_of([one]))[0] for one in sequences]
    for (rows, prompt), one, output in zip(ROWS.items(), sequences, outputs, strict=True):
        of_prompt, of_answer = seen[one]
        assert (len(of_prompt), len(of_answer)) == (rows, 1), "an answer brings one token"
        expected_RV = tiny_models.logits(reference, [*prompt, output.token_ids[0]])[-rows - 1 :]
        torch.testing.assert_close(torch.cat([of_prompt, of_answer]), expected_RV, atol=1e-3, rtol=0)
        assert list(output.token_ids) == tiny_models.greedy(reference, prompt, 2).token_ids


@pytest.mark.usefixtures("reference")
async def test_requests_share_the_rows_of_a_pass(folder: Path) -> None:
    async with asyncio.timeout(30), Model.open(folder, device="cpu", max_requests=3) as model:
        sequences = [sequence(model, prompt, rows) for rows, prompt in ROWS.items()]
        model.runtime.admission.submit(sequences)
        for one in sequences:
            await outputs_of([one])
        assert model.runtime.program.passes == 4, "the second and third wait for the first"
        with pytest.raises(RequestError, match="logit_rows: need 4, have 3 with max_requests=3"):
            model.runtime.admission.submit([sequence(model, tiny_models.PROMPT, 4)])
