"""The page at `/`: a chat, and beside it the line. Its files need no build, no network and no library."""

import functools
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only files of the page run, and no text becomes HTML: what a model says can do nothing."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """A file of the page; without a name, the page itself. Raises HTTPException 404."""
    name = request.path_params.get("name", "index.html")
    if name not in (files := _files()):
        raise HTTPException(404)
    return Response(files[name], headers=HEADERS, media_type=TYPES[Path(name).suffix])


@functools.cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir()}
