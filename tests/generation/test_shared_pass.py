"""What sections know of the pass that they compute in turn, and what is forgotten of one that failed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest
from support.events import ForeignEvent

from actors.core.message import GroupKey
from pipeline import Model
from pipeline.generation.generation_pass import GenerationPass
from pipeline.generation.program import GenerationProgram
from pipeline.generation.section import Section
from pipeline.generation.shared_pass import SharedPass

ORDERS: list[list[GroupKey]] = [[(0, "attn"), (0, "ffn"), (2, "attn")], [(1, "attn"), (3, "head")]]
STATES = [cast("GenerationPass", object()) for _ in ORDERS]


async def waits(waiting: Coroutine[Any, Any, object]) -> bool:
    task = asyncio.ensure_future(waiting)
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    return not task.done()


async def test_a_pass_that_failed_stands_nowhere_and_nobody_takes_part_in_it() -> None:
    pass_ = SharedPass(ORDERS)
    pass_.begin(STATES)
    pass_.left((0, "attn"), [])
    pass_.left((0, "ffn"), [])
    assert not await waits(pass_.arrive((1, "attn")))
    pass_.fail()
    assert await waits(pass_.begun(1)), "the section had not begun it"
    pass_.begin(STATES)
    assert await waits(pass_.arrive((1, "attn"))), "the pass before has been there"
    assert await pass_.begun(1) is STATES[1]
    assert await waits(pass_.all_through())


async def test_the_others_are_waited_for_one_by_one() -> None:
    pass_ = SharedPass(ORDERS)
    pass_.begin(STATES)
    assert await waits(pass_.others_through(1))
    pass_.through(0)
    assert not await waits(pass_.others_through(1))
    assert await waits(pass_.others_through(0))
    assert await waits(pass_.all_through())
    pass_.through(1)
    assert not await waits(pass_.all_through())


def test_waits_are_added_up_when_the_last_section_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.shared_pass.CLOCK", lambda: 10.0)
    pass_, last = SharedPass(ORDERS), ForeignEvent()
    pass_.begin(STATES)
    pass_.left((0, "attn"), [ForeignEvent(span=(11.0, 12.0))])
    pass_.left((1, "attn"), [last])
    pass_.through(0)
    last.span = 14.5, 15.0
    pass_.through(1)
    assert pass_.waits.seconds == [1.0, 2.5]


async def test_nothing_is_delivered_before_all_sections_are_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass has used may be given to others then: KV blocks that a section still writes must not be."""
    through: set[int] = set()
    embedded, deliver = Section.embedded, GenerationProgram.deliver

    async def late(self: Section, pass_: GenerationPass) -> None:
        if self.head is None:
            through.discard(self.number)
            await asyncio.sleep(0.02)
            through.add(self.number)
        await embedded(self, pass_)

    def delivered(self: GenerationProgram, *arguments: Any) -> None:
        assert through == {0}
        deliver(self, *arguments)

    monkeypatch.setattr(Section, "embedded", late)
    monkeypatch.setattr(GenerationProgram, "deliver", delivered)
    async with asyncio.timeout(60), Model.open("bundled", devices=["cpu"] * 2) as model:
        assert len((await model.generate("def ", max_new_tokens=3, ignore_eos=True)).token_ids) == 3
