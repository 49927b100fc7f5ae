"""ComfyUI Flow-TTRL: flow-matching models that draw what was asked, by searching while sampling."""

from __future__ import annotations

WEB_DIRECTORY = "web"
"""Served under the folder's name, where the host looks for help pages. pyproject.toml's ``web`` is
served under the project's, which also works where the folder's name has a space."""


async def comfy_entrypoint():
    """ComfyUI's way in (V3): nothing of the pack is imported before it is called."""
    from .nodes import FlowTTRLExtension, routes

    routes.register()
    return FlowTTRLExtension()
