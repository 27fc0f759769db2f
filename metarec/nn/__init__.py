"""The parts of a learner, each usable alone and under any meta-learning wrapper."""

from metarec.nn.encoder import SequenceEncoder
from metarec.nn.fusion import AdaptiveFusion
from metarec.nn.generator import ColdItemGenerator
from metarec.nn.items import FeatureItems, IdItems, Items, TableItems
from metarec.nn.learner import ModalityLearner

__all__ = [
    "AdaptiveFusion",
    "ColdItemGenerator",
    "FeatureItems",
    "IdItems",
    "Items",
    "ModalityLearner",
    "SequenceEncoder",
    "TableItems",
]
