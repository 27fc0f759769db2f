"""The batched inner loop and meta-training."""

from metarec.meta.learner import MetaLearner
from metarec.meta.stack import TaskStack
from metarec.meta.users import Adapted, Learner

__all__ = ["Adapted", "Learner", "MetaLearner", "TaskStack"]
