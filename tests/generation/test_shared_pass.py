"""A pass that sections share counts what it has waited for them when all are through with it."""

from dataclasses import dataclass

from pipeline.engine.runtime import CLOCK
from pipeline.generation.shared_pass import SharedPass

ORDERS = ([(0, "attn"), (0, "ffn")], [(1, "attn"), (1, "ffn")])


@dataclass
class Ran:
    """An operation that ends when it is told to."""

    span: tuple[float, float] | None = None
    error: BaseException | None = None

    def done(self) -> bool:
        return self.span is not None

    async def wait(self) -> None:
        return


async def test_waits_are_counted_when_the_last_section_is_through() -> None:
    shared = SharedPass(ORDERS)
    shared.begin([])
    began = CLOCK()
    first, second = Ran((began + 1, began + 2)), Ran()
    for order, ran in zip(ORDERS, (first, second), strict=True):
        for key in order:
            shared.left(key, [ran])
    shared.through(0)
    assert shared.waits.seconds == [0.0, 0.0]
    second.span = (began + 5, began + 6)
    shared.through(1)
    waited = [round(seconds, 1) for seconds in shared.waits.seconds]
    assert waited == [1.0, 3.0]
