"""The page at `/`, to try the endpoint: a few files, and a policy that lets nothing else in."""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

__all__ = ["PATHS", "router"]

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_folder = files("chancellor.server").joinpath("page")
_files = {
    file.name: _TYPES[suffix] for file in _folder.iterdir() if (suffix := f".{file.name.rpartition('.')[2]}") in _TYPES
}
PATHS: Final = frozenset("/" if name == "index.html" else f"/{name}" for name in _files)
"""Where the files are; nobody needs a key for them."""
router = APIRouter(include_in_schema=False)


def _serve(name: str, media_type: str) -> None:
    path = "/" if name == "index.html" else f"/{name}"

    def read() -> Response:
        return Response(_folder.joinpath(name).read_bytes(), media_type=media_type, headers=_HEADERS)

    router.add_api_route(path, read, methods=["GET"])


for _name, _type in _files.items():
    _serve(_name, _type)
