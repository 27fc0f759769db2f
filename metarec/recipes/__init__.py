"""Whole methods, each a file that reads like its paper."""

from metarec.recipes import mml
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML
from metarec.recipes.popularity import Popularity

__all__ = ["MML", "MMLConfig", "Popularity", "mml"]
