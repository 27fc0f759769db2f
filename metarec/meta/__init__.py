"""The batched inner loop and meta-training."""

import warnings
from typing import Any

from metarec.meta.engine import Engine, InnerLoop
from metarec.meta.learner import MetaLearner
from metarec.meta.users import Adapted, Learner
from metarec.meta.vmap import VmapUsers

__all__ = ["Adapted", "Engine", "InnerLoop", "Learner", "MetaLearner", "VmapUsers"]


def __getattr__(name: str) -> Any:
    if name == "TaskStack":
        warnings.warn("metarec.meta.TaskStack is now metarec.meta.VmapUsers", DeprecationWarning, stacklevel=2)
        return VmapUsers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
