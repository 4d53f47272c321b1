"""What is told of the server and its model."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.server.errors import RETRY_AFTER_SECONDS
from pipeline.server.served import served_of


def as_json(content: object, status: int = 200) -> Response:
    """An answer that is one JSON document."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def health(request: Request) -> Response:
    """Whether the model is loading, ready, draining or failed; 200 when it is ready."""
    served = served_of(request)
    if (state := served.state) == "ready":
        return as_json({"status": state})
    response = as_json({"status": state, "reason": str(served.failure) if served.failure else None}, 503)
    if state != "failed":
        response.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return response


async def models(request: Request) -> Response:
    """The names of the model."""
    served = served_of(request)
    rows = [{"id": name, "object": "model", "created": served.started, "owned_by": "penstock"} for name in served.names]
    return as_json({"object": "list", "data": rows})
