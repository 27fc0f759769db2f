"""Which catalogue a recommender serves in the place of the one that its model came with."""

from __future__ import annotations

import weakref

from metarec.data.dataset import Catalog
from metarec.model import Model

_served: weakref.WeakKeyDictionary[Model, Catalog] = weakref.WeakKeyDictionary()


def remember(given: Model, catalog: Catalog) -> None:
    """Note the items that a recommender serves of the model that it was given."""
    _served[given] = catalog


def lacking(model: Model) -> str:
    """What a recommender that was given a model has added or removed since, in words; empty if nothing is known.

    Example:
        >>> lacking(Model())
        ''
    """
    served, own = _served.get(model), model.catalog
    if served is None or own is None:
        return ""
    counts = {
        "added": len(served.items) - len(own.items),
        "removed": len(served.hidden - own.hidden),
        "restored": len(own.hidden - served.hidden),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
