"""Events of nobody's device, in whatever state the test wants."""

import asyncio
from dataclasses import dataclass


@dataclass(eq=False)
class ForeignEvent:
    ended: bool = True
    error: BaseException | None = None
    span: tuple[float, float] | None = None

    def done(self) -> bool:
        return self.ended

    async def wait(self) -> None:
        if self.error is not None:
            raise self.error


class LostEvent:
    """Whatever it stands for, nobody will ever hear that it has ended."""

    error = None
    span = None

    def done(self) -> bool:
        return False

    async def wait(self) -> None:
        await asyncio.Event().wait()
