"""A function of the caller's own changes the logits of its request, and can harm no other."""

import math
import re
from typing import Any

import pytest
import support.choosing
import torch
from support.choosing import Alone, Chooser

from pipeline.errors import RequestError, shown
from pipeline.generation.sampling import Choice


def test_a_processor_of_the_callers_own_sees_ids_and_logits_behind_the_penalties() -> None:
    seen: list[list[int]] = []

    def prefer_the_third(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        seen.append(token_ids)
        assert logits[1] == -math.inf
        assert (logits.shape, logits.dtype, logits.device.type) == ((6,), torch.float32, "cpu")
        logits[2] = 10.0
        return logits

    logits_V = torch.tensor([1.0, 9.0, 0.0, 2.0, 2.0, 2.0])
    for arguments in ({}, {"temperature": 1.0, "top_k": 1}):
        chooser = Alone(6, (5, 0), suppress_tokens=[1], logits_processor=prefer_the_third, logprobs=1, **arguments)
        choice = chooser.sample(logits_V)
        assert chooser.sample(logits_V) == choice == Choice(2, choice.logprobs)
        assert choice.logprobs is not None
        assert choice.logprobs[1] == float(logits_V.log_softmax(0)[1]), "of the logits as they came"
    assert seen == 2 * [[5, 0], [5, 0, 2]]


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        (lambda ids, logits: 1 // 0, "logits_processor: failed for token 0: ZeroDivisionError"),
        (lambda ids, logits: None, "logits_processor: need a tensor of 6 scores to be returned for token 0; have None"),
        (lambda ids, logits: "ab", "logits_processor: need a tensor of 6 scores to be returned for token 0; have 'ab'"),
        (lambda ids, logits: logits[:5], "logits_processor: need a tensor of 6 scores to be returned for token 0; "),
        (lambda ids, logits: logits * math.nan, "logits_processor: need scores below infinity for token 0"),
        (lambda ids, logits: logits - math.inf, "no token is left after 0: .*logits_processor rule out all 6"),
    ],
)
async def test_a_processor_that_fails_ends_its_own_request(processor: Any, says: str) -> None:
    chooser = Chooser(6)
    bad, good = support.choosing.sampler(6, logits_processor=processor), support.choosing.sampler(6)
    failed, chosen = await chooser.choose([bad, good], torch.arange(6.0).expand(2, 6))
    assert (type(failed), chosen) == (RequestError, Choice(5, None))
    assert re.match(says, str(failed))


async def later(token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    return logits


@pytest.mark.parametrize("processor", [3, later])
def test_a_processor_must_be_a_function_that_is_not_async(processor: Any) -> None:
    need = "need a function of token ids and logits, not an async one, or None"
    with pytest.raises(RequestError, match=f"logits_processor: {need}; have {shown(processor)[:10]}"):
        Alone(6, logits_processor=processor)
