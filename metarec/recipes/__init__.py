"""Whole methods, each a file that reads like its paper."""

from metarec.recipes import learning_on, mml, sasrec
from metarec.recipes.blend import Blend, paying_steps, with_steps
from metarec.recipes.config import MMLConfig
from metarec.recipes.ease import EASE
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.fit import fit
from metarec.recipes.fit_report import FitReport
from metarec.recipes.inner_steps import select_inner_steps, with_inner_steps
from metarec.recipes.itemknn import ItemKNN
from metarec.recipes.mml import MML
from metarec.recipes.mml_blend import mml_blend
from metarec.recipes.nested_validation import fit_by_nested_validation, validated, validation_split
from metarec.recipes.own_clicks import OwnClicks
from metarec.recipes.popularity import LivePopularity, Popularity
from metarec.recipes.profile_popularity import ProfilePopularity
from metarec.recipes.transitions import CoClicks, Transitions

__all__ = [
    "EASE",
    "MML",
    "Blend",
    "CoClicks",
    "Ensemble",
    "FitReport",
    "ItemKNN",
    "LivePopularity",
    "MMLConfig",
    "OwnClicks",
    "Popularity",
    "ProfilePopularity",
    "Transitions",
    "fit",
    "fit_by_nested_validation",
    "learning_on",
    "mml",
    "mml_blend",
    "paying_steps",
    "sasrec",
    "select_inner_steps",
    "validated",
    "validation_split",
    "with_inner_steps",
    "with_steps",
]
