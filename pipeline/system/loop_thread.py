"""An event loop on a thread of its own, so that the main thread can wait for a person who types."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.system.event_loop import loop_factory

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines, one after another, for a thread that waits for them. What they start goes on meanwhile."""

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._begun: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._ends: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._begun.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ends is not None:
            self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its result.

        KeyboardInterrupt and SystemExit, which signals raise here, cancel it; they are raised when it has ended.
        """
        ended: concurrent.futures.Future[Result] = concurrent.futures.Future()
        task: list[asyncio.Task[Result]] = []

        def begin() -> None:
            task.append(self._loop.create_task(work))
            task[0].add_done_callback(lambda done: _hand_on(done, ended))

        def cancel() -> None:
            task[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        interrupted: BaseException | None = None
        while True:
            try:
                result = ended.result()
                break
            except (KeyboardInterrupt, SystemExit) as error:
                interrupted = error
                self._loop.call_soon_threadsafe(cancel)
            except concurrent.futures.CancelledError:
                if interrupted is None:
                    raise
                break
        if interrupted is not None:
            raise interrupted
        return result

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._until_it_ends())
        except BaseException as error:
            if self._begun.done():
                raise
            self._begun.set_exception(error)

    async def _until_it_ends(self) -> None:
        self._ends = asyncio.Event()
        self._begun.set_result(asyncio.get_running_loop())
        await self._ends.wait()


def _hand_on(done: "asyncio.Task[Result]", ended: "concurrent.futures.Future[Result]") -> None:
    if done.cancelled():
        ended.cancel()
    elif (error := done.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(done.result())
