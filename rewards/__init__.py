"""Judges of images: one module a family, and the mixer that makes several one."""

from .analytic import ANALYTIC
from .base import Reward, Scores
from .mixer import RewardMix

__all__ = ["ANALYTIC", "Reward", "RewardMix", "Scores"]
