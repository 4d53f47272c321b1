"""The routes, and who may use them. A request passes CORS, the door, and the handler of its route."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.server.chat_completions import chat_completions
from pipeline.server.completions import completions
from pipeline.server.door import Door
from pipeline.server.host_names import HostNames
from pipeline.server.live import live
from pipeline.server.metrics import ModelCollector, metrics
from pipeline.server.openapi import openapi
from pipeline.server.operations import health, models, props, slots
from pipeline.server.page import page
from pipeline.server.served import ServedModel
from pipeline.server.tokenize import detokenize, tokenize, tokenizer_info

Handler = Callable[[Request], Awaitable[ASGIApp]]
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


class App(Starlette):
    """Starlette without its own middleware: the door answers errors, and each of them would look at every frame."""

    def build_middleware_stack(self) -> ASGIApp:
        """See Starlette."""
        app: ASGIApp = self.router
        for kind, arguments, named in reversed(self.user_middleware):
            app = kind(app, *arguments, **named)
        return app


class PlainRoute(Route):
    """A route of Starlette, without what answers errors: the door does."""

    def __init__(self, path: str, method: str, handler: Handler) -> None:
        super().__init__(path, handler, methods=[method])
        self._handler = handler
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._handler(Request(scope, receive, send))
        await answer(scope, receive, send)


def make_app(served: ServedModel) -> Starlette:
    """The application that serves a model, which may still be loading."""
    routes = [PlainRoute(path, method, handler) for path, (method, handler) in ROUTES.items()]
    options = served.options
    hosts = HostNames(options.host, options.allowed_hosts)
    middleware = [Middleware(Door, keys=options.api_keys, pages=options.cors, hosts=hosts)]
    if options.cors:
        cors = Middleware(CORSMiddleware, allow_origins=options.cors, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)
    app = App(routes=routes, middleware=middleware)
    app.state.served = served
    served.timings.registry.register(ModelCollector(served))
    return app
