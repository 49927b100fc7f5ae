"""ComfyUI Flow-TTRL: flow-matching models that draw what was asked, by searching while sampling."""

from __future__ import annotations

WEB_DIRECTORY = "web"


async def comfy_entrypoint():
    """ComfyUI's way in (V3): nothing of the pack is imported before it is called."""
    from .nodes import FlowTTRLExtension, routes

    routes.register()
    return FlowTTRLExtension()
