"""What a browser or the API may ask of a running search: to finish now, with the best so far.

POST /flow-ttrl/finish
"""

from __future__ import annotations

import time

from aiohttp import web
from server import PromptServer

_FINISH = "/flow-ttrl/finish"
_asked = float("-inf")


def finish_asked(since: float) -> bool:
    """Whether somebody has asked to finish after ``since``, of ``time.monotonic()``."""
    return _asked > since


async def _finish(request: web.Request) -> web.Response:
    global _asked
    _asked = time.monotonic()
    return web.json_response({"asked": True})


def register() -> None:
    """Make the route known, once; the host takes it up when it starts to listen."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and all(getattr(r, "path", "") != _FINISH for r in server.routes):
        server.routes.post(_FINISH)(_finish)
