"""Deprecated method names of learners: ``rank`` is ``score``, ``stand`` is ``encode_queries``."""

from __future__ import annotations

import warnings
from typing import Any

RENAMED = {"rank": "score", "stand": "encode_queries"}


def accept_former_names(kind: type) -> None:
    """Give a learner's class the new names of the methods that it defines by deprecated ones, with a warning."""
    for old, new in RENAMED.items():
        if old in vars(kind) and new not in vars(kind):
            warnings.warn(f"{kind.__name__}.{old}() is now {new}(); rename it", DeprecationWarning, stacklevel=4)
            setattr(kind, new, vars(kind)[old])


class FormerNames:
    """A mixin that keeps the deprecated names working, called and overridden, for one release."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        accept_former_names(cls)

    def rank(self, examples: Any) -> Any:
        """Deprecated: ``score``."""
        return _call(self, "rank", examples)

    def stand(self, examples: Any) -> Any:
        """Deprecated: ``encode_queries``."""
        return _call(self, "stand", examples)


def _call(learner: Any, old: str, examples: Any) -> Any:
    """The nearest class's method of the new name; one that was made of the old name may have called it by super()."""
    new = RENAMED[old]
    warnings.warn(f"{type(learner).__name__}.{old}() is now {new}()", DeprecationWarning, stacklevel=3)
    kinds = (vars(kind) for kind in type(learner).__mro__)
    return next(own[new] for own in kinds if new in own and own[new] is not own.get(old))(learner, examples)
