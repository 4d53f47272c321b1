"""/live: what the line does, for the page. Nothing is measured while nobody looks."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from pipeline.server.errors import told
from pipeline.server.line_frame import Moment, line_frame
from pipeline.server.served import ServedModel, served_of
from pipeline.server.streaming import EventStream

PERIOD_SECONDS = 0.5
MOMENTS = 5
"""What happened is looked at over two seconds: an operation counts when it ends, and a read may take as long."""


async def live(request: Request) -> ASGIApp:
    """Twice a second a document: its `state`, a sentence that it `says`, and what `line_frame` has of an open model."""
    return EventStream(_documents(served_of(request)))


async def _documents(served: ServedModel) -> AsyncGenerator[bytes, None]:
    moments: deque[Moment] = deque(maxlen=MOMENTS)
    while (state := served.state) in ("loading", "ready"):
        if state == "ready":
            now = Moment(time.perf_counter(), served.model.statistics())
            if moments:
                frame = line_frame(moments[0], now)
                yield msgspec.json.encode({"state": state, **frame})
            if not now.counted.requests.running:
                moments.clear()  # a pause says nothing about the requests that follow
            moments.append(now)
        else:
            seconds = time.time() - served.started
            yield msgspec.json.encode({"state": state, "says": f"The model is loading, for {seconds:.0f} s so far."})
        await asyncio.sleep(PERIOD_SECONDS)
    failure = served.failure
    ends = "The server is ending." if failure is None else f"The model does not serve: {told(failure)}."
    yield msgspec.json.encode({"state": state, "says": ends})
