"""Judges of images: one module a family, the catalogue, and the mixer that makes several one."""

from .analytic import ANALYTIC
from .base import Reward, Scores
from .catalogue import CATALOGUE
from .files import default_folders
from .loading import load_reward
from .mixer import MODES, Judge, RewardMix

__all__ = [
    "ANALYTIC",
    "CATALOGUE",
    "MODES",
    "Judge",
    "Reward",
    "RewardMix",
    "Scores",
    "default_folders",
    "load_reward",
]
