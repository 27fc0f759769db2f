"""Which catalogue a recommender serves in the place of the one that its model came with."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from metarec.data.dataset import Catalog
from metarec.model import Model


class Holder(Protocol):
    """What serves a model."""

    @property
    def catalog(self) -> Catalog:
        """The items as they are served."""
        ...


_served: weakref.WeakKeyDictionary[Model, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def remember(given: Model, holder: Holder) -> None:
    """Note who serves the model that a recommender was given, for as long as anybody does."""
    _served[given] = weakref.ref(holder)


def lacking(model: Model) -> str:
    """What a recommender that was given a model has added or removed since, in words; empty if nothing is known.

    Example:
        >>> lacking(Model())
        ''
    """
    found, own = _served.get(model), model.catalog
    holder = None if found is None else found()
    if holder is None or own is None:
        return ""
    served = holder.catalog
    counts = {
        "added": len(served.items) - len(own.items),
        "removed": len(served.hidden - own.hidden),
        "restored": len(own.hidden - served.hidden),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
