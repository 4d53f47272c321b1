"""The ingress: it reads a request, and hands it to the replica that has seen its beginning.

The proxy of Serve chooses a replica before the body is there, so that it cannot tell what begins alike.
"""

from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pipeline.errors import Busy
from pipeline.replicas.conversation import conversation_of
from pipeline.replicas.merged_metrics import merged_metrics
from pipeline.server.door import read_body
from pipeline.server.errors import ApiError, envelope, error_response, unavailable
from pipeline.server.served import bearer
from pipeline.server.streaming import DONE

SENT = ("type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server")
"""What a replica needs to know of a request, beside its path."""
METRICS = "/metrics"
METRICS_SECONDS = 5.0
EVENTS = b"text/event-stream"


class Gate:
    """Hands requests on. All else, keys too, is looked at by the application of the replica."""

    def __init__(self, replicas: DeploymentHandle[Any], asks_for_keys: bool) -> None:
        self._replicas = replicas
        self._asks_for_keys = asks_for_keys

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        scope = {name: request.scope[name] for name in SENT}
        scope |= {"path": request.scope["path"].removeprefix(request.scope["root_path"]) or "/", "root_path": ""}
        scope["raw_path"] = scope["path"].encode()
        if scope["path"] == METRICS:
            return await self._metrics(scope)
        try:
            body = await read_body(request)
        except ApiError as error:
            return error_response(error)
        key = bearer(request.headers.get("authorization")) if self._asks_for_keys else None
        chosen = self._replicas.options(method_name="answer", stream=True, session_id=conversation_of(body, key))
        return Forwarded(cast("DeploymentResponseGenerator[list[Message]]", chosen.remote(scope, body)))

    async def _metrics(self, scope: dict[str, Any]) -> Response:
        """Those of each replica that tells them in time, or its refusal."""
        asked = self._replicas.broadcast("whole_answer", scope)
        answers = await asked.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        documents: dict[str, str] = {}
        for name, messages in (answer for answer in answers if not isinstance(answer, BaseException)):
            body = b"".join(message.get("body", b"") for message in messages)
            if messages[0]["status"] != 200:
                return _response(messages[0], body)
            documents[name] = body.decode()
        return Response(merged_metrics(documents), media_type=CONTENT_TYPE_LATEST)


class Forwarded(Response):
    """The answer of a replica, as it comes. A client that leaves ends the request there."""

    def __init__(self, messages: DeploymentResponseGenerator[list[Message]]) -> None:
        super().__init__()
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Where its replica dies, the client gets an error, or a frame with it."""
        start: Message | None = None
        try:
            async for messages in self._messages:
                for message in messages:
                    start = start or message
                    await send(message)
        except (BackPressureError, RayActorError) as error:
            known = _as_known(error)
            if start is None:
                await error_response(known)(scope, receive, send)
            elif EVENTS in dict(start["headers"])[b"content-type"]:
                last = b"data: " + envelope(known) + b"\n\n" + DONE
                await send({"type": "http.response.body", "body": last, "more_body": False})
            else:
                raise  # Serve breaks the connection off: under the status 200 a part would be taken for the answer
        finally:
            self._messages.cancel()


def _as_known(error: BackPressureError | RayActorError) -> Exception:
    if isinstance(error, BackPressureError):
        return Busy("as many requests wait as may; try again later")
    return unavailable("the replica that ran this request has ended; ask again")


def _response(start: Message, body: bytes) -> Response:
    response = Response(body, start["status"])
    response.raw_headers = start["headers"]
    return response
