"""A sequence may ask for the logits of several of its positions: the real program, against transformers."""

import asyncio
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support import tiny_models
from transformers import PreTrainedModel

from pipeline import Model, RequestError
from pipeline.generation.parameters import SamplingParameters
from pipeline.generation.sampling import Choice
from pipeline.generation.sequence import RunningSequence

ROWS = {3: tiny_models.PROMPT, 1: tiny_models.PROMPT[:5], 2: tiny_models.PROMPT[3:9]}
"""The prompt of each sequence, by the rows of logits that it asks for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen3")


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return tiny_models.save("qwen3", folder)


class Watched(RunningSequence):
    """Keeps the logits that it chooses from, and how many of its tokens counted as cached then."""

    def __init__(self, model: Model, prompt: Sequence[int], rows: int) -> None:
        parameters = SamplingParameters(max_new_tokens=2, ignore_eos=True)
        vocabulary_size = model.runtime.config.vocabulary_size
        super().__init__(array("i", prompt), parameters, frozenset(), None, vocabulary_size)
        self.logit_rows = rows
        self.seen: list[torch.Tensor] = []
        self.cached: list[int] = []

    def choose(self, logits_RV: torch.Tensor) -> Choice | RequestError:
        self.seen.append(logits_RV.clone())
        self.cached.append(self.cached_tokens)
        return super().choose(logits_RV)


@pytest.mark.parametrize(("device", "policy"), [("cpu", "backpressure"), ("cpu-copy", "stage3")])
async def test_rows_of_several_positions_are_those_of_transformers(
    device: str, policy: str, folder: Path, reference: PreTrainedModel
) -> None:
    async with asyncio.timeout(30), Model.open(folder, device=device, policy=policy, max_requests=6) as model:
        sequences = [Watched(model, prompt, rows) for rows, prompt in ROWS.items()]
        model.runtime.admission.submit(sequences)
        outputs = [await sequence.output() for sequence in sequences]
    for (rows, prompt), sequence, output in zip(ROWS.items(), sequences, outputs, strict=True):
        of_prompt, of_answer = sequence.seen
        assert (len(of_prompt), len(of_answer)) == (rows, 1), "an answer brings one token"
        assert sequence.cached == [0, len(prompt)], "what a pass computes counts when its tokens are chosen"
        expected_RV = tiny_models.logits(reference, [*prompt, output.token_ids[0]])[-rows - 1 :]
        torch.testing.assert_close(torch.cat([of_prompt, of_answer]), expected_RV, atol=1e-3, rtol=0)
        assert list(output.token_ids) == tiny_models.greedy(reference, prompt, 2).token_ids


@pytest.mark.usefixtures("reference")
async def test_requests_share_the_rows_of_a_pass(folder: Path) -> None:
    async with asyncio.timeout(30), Model.open(folder, device="cpu", max_requests=3) as model:
        sequences = [Watched(model, prompt, rows) for rows, prompt in ROWS.items()]
        model.runtime.admission.submit(sequences)
        for sequence in sequences:
            await sequence.output()
        assert model.runtime.program.passes == 4, "the second and third wait for the first"
        with pytest.raises(RequestError, match="logit_rows: need 4, have 3 with max_requests=3"):
            model.runtime.admission.submit([Watched(model, tiny_models.PROMPT, 4)])
