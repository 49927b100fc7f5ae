"""FLUX.1 and SD3.5 without ComfyUI: pipelines of diffusers, one image or a file of prompts.

from flow_ttrl.headless import load_mix, make_settings, search_images
"""

from ..rewards.loading import load_mix
from ..sampling import make_settings
from ..sampling.hosts.diffusers import SearchedImages, search_images
from .models import Machine, Model, load_pipeline
from .paper import paper_settings

__all__ = [
    "Machine",
    "Model",
    "SearchedImages",
    "load_mix",
    "load_pipeline",
    "make_settings",
    "paper_settings",
    "search_images",
]
