"""Random events of few users and items, as a data set and back, for the tests of the split and of its parts."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from metarec.data import Catalog, Dataset, Vocabulary

Event = tuple[int, int, float]
EVENTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(-3, 3)), min_size=10, max_size=30)


def dataset(events: list[Event]) -> Dataset:
    """User, item, time; sorted here by Python's stable sort."""
    ordered = sorted(events, key=lambda e: (e[0], e[2]))
    user, item, time = (np.array([e[k] for e in ordered]) for k in range(3))
    users, items = Vocabulary([f"u{i}" for i in range(1, 13)], "user"), Vocabulary([f"i{i}" for i in range(1, 9)])
    return Dataset(users, Catalog(items), user, item, time, np.ones(items.size, dtype=np.bool_), "toy", {"before": 7})


def triples(data: Dataset) -> list[Event]:
    return sorted(zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True))
