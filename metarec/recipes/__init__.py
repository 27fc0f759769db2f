"""Whole methods, each a file that reads like its paper."""

from metarec.recipes import mml, sasrec
from metarec.recipes.blend import Blend
from metarec.recipes.config import MMLConfig
from metarec.recipes.ease import EASE
from metarec.recipes.itemknn import ItemKNN
from metarec.recipes.mml import MML
from metarec.recipes.mml_blend import mml_blend
from metarec.recipes.paying import paying_steps, with_steps
from metarec.recipes.popularity import LivePopularity, Popularity
from metarec.recipes.transitions import CoClicks, Transitions

__all__ = [
    "EASE",
    "MML",
    "Blend",
    "CoClicks",
    "ItemKNN",
    "LivePopularity",
    "MMLConfig",
    "Popularity",
    "Transitions",
    "mml",
    "mml_blend",
    "paying_steps",
    "sasrec",
    "with_steps",
]
