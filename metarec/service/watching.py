"""What to watch of a service that learns, and of what it shows, in the Prometheus registry of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from metarec.recommender import Recommendation, Recommender
from metarec.service.handover import Handover


class Watch:
    """Staleness, drift, and the share of items shown that training has not seen.

    Args:
        registry: where the figures go.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shown = Counter(
            "metarec_shown_items",
            "Items of one list of each batch, by whether training has seen them.",
            ["seen"],
            registry=registry,
        )
        self._version = Gauge(
            "metarec_model_version",
            "Step of learning on whose weights answer.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._unlearned = Gauge(
            "metarec_unlearned_changes",
            "Changes of the journal that the weights have not learned from.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._worth = Gauge(
            "metarec_held_out_worth",
            "Mean of 1 / log2(1 + rank) of held-out last clicks at the last step, by the old weights and the new.",
            ["part", "weights"],
            multiprocess_mode="livemax",
            registry=registry,
        )

    def shown(self, recommender: Recommender, items: Sequence[Recommendation]) -> None:
        """Count one list."""
        warm = recommender.model.warm
        if warm is None or not items:
            return
        seen = int(np.asarray(warm)[recommender.catalog.items.encode([item.id for item in items])].sum())
        self._shown.labels("yes").inc(seen)
        self._shown.labels("no").inc(len(items) - seen)

    def look(self, handover: Handover) -> None:
        """Take down how far the learner is."""
        self._version.set(handover.version)
        self._unlearned.set(handover.unlearned)
        for part, said in (handover.lesson.learned or {}).items():
            for weights, name in (("old", "before"), ("new", "after")):
                if said.get(name) is not None:
                    self._worth.labels(part, weights).set(said[name])
