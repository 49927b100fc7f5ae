"""What a browser or the API may ask of a running search: to finish now, with the best so far.

POST /flow-ttrl/finish
"""

from __future__ import annotations

import time

from aiohttp import web
from server import PromptServer

_asked = float("-inf")


def finish_asked(since: float) -> bool:
    """Whether somebody has asked to finish after ``since``, of ``time.monotonic()``."""
    return _asked > since


async def _finish(request: web.Request) -> web.Response:
    global _asked
    _asked = time.monotonic()
    return web.json_response({"asked": True})


def register() -> None:
    """Make the routes known; the host takes them up when it starts to listen."""
    PromptServer.instance.routes.post("/flow-ttrl/finish")(_finish)
