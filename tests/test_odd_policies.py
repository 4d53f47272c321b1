"""Policies whose methods fail or answer with something else: named, not hung."""

from collections.abc import Callable, Sequence

import pytest
from support.prefetch_queues import open_queue
from support.scripted_policy import ScriptedPolicy

from actors.core.errors import LineError
from actors.core.ports import Ask, Half
from pipeline.engine.policies import fit_policy
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda half: 1 / 0, "at_start failed: ZeroDivisionError: division by zero"),
        (lambda half: None, "at_start failed: TypeError: 'NoneType' object is not iterable"),
        (lambda half: ["attn"], "at_start must give Asks, gave 'attn'"),
        (lambda half: [Ask("atn", 3)], "at_start asks for 'atn' of layer 3; need a kind of attn, ffn"),
        (lambda half: [Ask("attn", "3")], "at_start asks for 'attn' of layer '3'; .* and the number of a layer"),  # type: ignore[arg-type]
    ],
)
async def test_a_policy_that_gives_no_answer_is_named(answer: Callable[[Half], Sequence[Ask]], told: str) -> None:
    queue = open_queue(ScriptedPolicy(answer))
    with pytest.raises(LineError, match=f"policy scripted: {told}"):
        queue.started(0)


@pytest.mark.parametrize("fit", [lambda slots: None, lambda slots: 1 / 0])
def test_a_fit_that_gives_no_policy_is_named(fit: object) -> None:
    policy = ScriptedPolicy(lambda half: ())
    policy.fit = fit  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError, match=r"scripted: fit (failed: ZeroDivisionError|must give a PrefetchPolicy)"):
        fit_policy(policy, {"ffn": 1})
