"""Policies whose methods fail or answer with something else: named, not hung."""

from collections.abc import Callable, Iterable, Sequence

import pytest
from support.prefetch_queues import open_queue
from support.scripted_policy import ScriptedPolicy

from actors.core.errors import LineError, PolicyFailed
from actors.core.expert_cache import Expert, ExpertCache, LeastRecentlyUsed
from actors.core.ports import Ask, Half
from pipeline.engine.policies import fit_policy
from pipeline.engine.settings import EngineSettings
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


class Odd(LeastRecentlyUsed):
    """An eviction policy that gives `answer` as its victims."""

    def __init__(self, answer: Callable[[], object]) -> None:
        super().__init__()
        self.answer = answer

    def victims(self) -> Iterable[Expert]:
        return self.answer()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: 1 / 0, r"Odd failed: ZeroDivisionError: division by zero"),
        (lambda: None, r"Odd failed: TypeError: 'NoneType' object is not iterable"),
        (lambda: [[0, 1]], r"Odd failed: TypeError: unhashable"),
        (list, r"Odd: victims gave nothing; need a kept expert"),
        (lambda: [(7, 3)], r"Odd: victims gave \(7, 3\), which is not kept; need a kept expert"),
    ],
)
def test_an_eviction_policy_that_gives_no_victim_is_named(answer: Callable[[], object], told: str) -> None:
    cache = ExpertCache(1, Odd(answer))
    cache.request(0, [1])
    with pytest.raises(PolicyFailed, match=f"expert_cache {told}"):
        cache.request(0, [2])


def test_a_line_that_has_stopped_asks_nothing_of_a_policy_that_failed() -> None:
    policy = Odd(lambda: 1 / 0)
    policy.remove = policy.use = lambda expert: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    cache = ExpertCache(2, policy)
    for _ in range(2):
        with pytest.raises(PolicyFailed, match="expert_cache Odd failed: ZeroDivisionError"):
            cache.request(0, [1, 2])
        cache.forget()


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        (LeastRecentlyUsed(), "need one of lru, lfu, none, or a class of eviction policies, have <.*"),
        (dict, "dict has no use, remove, victims; need an EvictionPolicy"),
        (lambda: 1 / 0, ".* failed: ZeroDivisionError: division by zero"),
    ],
)
def test_what_makes_no_eviction_policy_is_refused_before_any_work(cache: object, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^expert_cache: {told}$"):
        EngineSettings(expert_cache=cache)  # type: ignore[arg-type]
