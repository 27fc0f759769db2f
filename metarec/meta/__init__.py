"""The batched inner loop and meta-training."""

from metarec.meta.learner import Adapted, Learner, MetaLearner
from metarec.meta.stack import TaskStack

__all__ = ["Adapted", "Learner", "MetaLearner", "TaskStack"]
