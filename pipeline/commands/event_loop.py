"""The event loop that commands run on."""

import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
TERMINATED = 128 + signal.SIGTERM


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its result, on uvloop where it is installed (rule 10).

    SIGTERM ends it as Ctrl-C does, so that it tells what was done until then; SystemExit has the status of that.
    """
    import asyncio

    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def until_told() -> Result:
        if (task := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(until_told())
    except asyncio.CancelledError:
        raise SystemExit(TERMINATED) from None
