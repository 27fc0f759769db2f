"""Cold-start sequential recommendation by meta-learning: a new user has clicked three things; what next?"""

from metarec import datasets, distributed, functional, recipes
from metarec.data import Catalog, Dataset, EpisodeSampler, Vocabulary, load_atomic, split_by_time, split_time
from metarec.evaluation import evaluate
from metarec.io import load, save
from metarec.meta import MetaLearner
from metarec.model import Model, register
from metarec.nn import (
    AdaptiveFusion,
    ColdItemGenerator,
    FeatureItems,
    IdItems,
    ModalityLearner,
    SequenceEncoder,
)
from metarec.recipes import MML, MMLConfig, Popularity, fit
from metarec.recommender import Recommender
from metarec.report import Report
from metarec.scoring import UserState
from metarec.types import EpisodeBatch, Examples, Method, Progress, Scored
from metarec.wrapped import Served as Served
from metarec.wrapped import as_model

__version__ = "0.1.0"

__all__ = [
    "MML",
    "AdaptiveFusion",
    "Catalog",
    "ColdItemGenerator",
    "Dataset",
    "EpisodeBatch",
    "EpisodeSampler",
    "Examples",
    "FeatureItems",
    "IdItems",
    "MMLConfig",
    "MetaLearner",
    "Method",
    "ModalityLearner",
    "Model",
    "Popularity",
    "Progress",
    "Recommender",
    "Report",
    "Scored",
    "SequenceEncoder",
    "UserState",
    "Vocabulary",
    "as_model",
    "datasets",
    "distributed",
    "evaluate",
    "fit",
    "functional",
    "load",
    "load_atomic",
    "recipes",
    "register",
    "save",
    "split_by_time",
    "split_time",
]
