"""The routes, and who may use them. A request passes CORS, the door, and the handler of its route."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.errors import PenstockError
from pipeline.server.chat_completions import chat_completions
from pipeline.server.completions import completions
from pipeline.server.door import Door
from pipeline.server.errors import ApiError, error_response
from pipeline.server.live import live
from pipeline.server.metrics import ModelCollector, metrics
from pipeline.server.openapi import openapi
from pipeline.server.operations import health, models, props, slots
from pipeline.server.page import page
from pipeline.server.served import ServedModel
from pipeline.server.tokenize import detokenize, tokenize, tokenizer_info

Handler = Callable[[Request], Awaitable[Response]]
ROUTES: dict[str, tuple[str, Handler]] = {
    "/v1/chat/completions": ("POST", chat_completions),
    "/v1/completions": ("POST", completions),
    "/v1/models": ("GET", models),
    "/v1/models/{name:path}": ("GET", models),
    "/health": ("GET", health),
    "/metrics": ("GET", metrics),
    "/props": ("GET", props),
    "/slots": ("GET", slots),
    "/tokenize": ("POST", tokenize),
    "/detokenize": ("POST", detokenize),
    "/tokenizer_info": ("GET", tokenizer_info),
    "/": ("GET", page),
    "/page/{name}": ("GET", page),
    "/live": ("GET", live),
    "/openapi.json": ("GET", openapi),
}
"""The method and the handler of each path."""


def make_app(served: ServedModel) -> Starlette:
    """The application that serves a model, which may still be loading."""
    routes = [Route(path, handler, methods=[method]) for path, (method, handler) in ROUTES.items()]
    middleware = [Middleware(Door, keys=served.options.api_keys, pages=served.options.cors)]
    if served.options.cors:
        cors = Middleware(CORSMiddleware, allow_origins=served.options.cors, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)
    handled = dict.fromkeys((HTTPException, ApiError, PenstockError), _answer_error)
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handled)
    app.state.served = served
    served.timings.registry.register(ModelCollector(served))
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error)
