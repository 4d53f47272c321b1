"""What passes have waited for each section, from events that say when they ran."""

from dataclasses import dataclass

from pipeline.engine.section_waits import SectionWaits


@dataclass
class Ran:
    span: tuple[float, float] | None
    error: BaseException | None = None

    def done(self) -> bool:
        return True

    async def wait(self) -> None:
        return


def test_a_section_is_waited_for_while_no_device_computes_before_its_groups() -> None:
    waits = SectionWaits(2)
    waits.begin(10.0)
    waits.left(0, [Ran((11.0, 13.0)), Ran((12.0, 14.0))])
    waits.left(1, [Ran((13.5, 15.0)), Ran(None)])
    waits.left(1, [Ran((18.0, 19.0))])
    waits.left(0, [Ran((19.5, 20.0))])
    assert waits.seconds == [0.0, 0.0], "nothing counts before the pass has ended"
    waits.ended()
    waits.ended()
    assert waits.seconds == [1.5, 3.0]


def test_a_pass_that_failed_is_forgotten() -> None:
    waits = SectionWaits(1)
    waits.begin(0.0)
    waits.left(0, [Ran((5.0, 6.0))])
    waits.begin(7.0)
    waits.left(0, [Ran((7.5, 8.0))])
    waits.ended()
    assert waits.seconds == [0.5]
