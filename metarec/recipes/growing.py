"""A trained model takes in items that it has never seen, without training."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import nn

from metarec.data.dataset import Catalog
from metarec.nn import ColdItemGenerator, FeatureItems, IdItems, Items, ModalityLearner
from metarec.nn.learner import TOLD
from metarec.recipes.features import joined, standardised
from metarec.recipes.mml import MML
from metarec.types import Modality


def with_items(model: MML, added: Catalog) -> MML:
    """A model that ranks more items, with the trained weights of the one given, shared; nothing is trained.

    The new items are cold: their vectors come from the generators and the modality learners. The codes and
    vectors of the items that the model has stay as they are.

    Args:
        model: stays as it is.
        added: the new items, with features of any of the model's modalities, as they come; they are standardised by
            the features that the model was built with.

    Raises:
        ValueError: as for :meth:`Catalog.grown <metarec.Catalog.grown>`.

    Example:
        >>> import torch
        >>> from metarec.data import Vocabulary
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MMLConfig
        >>> model = MML.build(planted(users=60, items=40), MMLConfig(dim=8))
        >>> text = Modality("text", torch.randn(2, 24), torch.tensor([False, True]))
        >>> larger = with_items(model, Catalog(Vocabulary(["new"]), {"text": text}))
        >>> larger.catalog.items, larger.learner("id").items.known[-1]
        (Vocabulary(41 item ids), tensor(True))
    """
    out = copy.copy(model)
    out.catalog = model.catalog.grown(added)
    out.warm = np.append(model.warm, np.zeros(len(added.items), dtype=np.bool_))
    modalities = standardised(out.catalog, model.scales)
    learners = {name: _grown(model.learner(name), name, modalities, out.catalog.size) for name in model.learners}
    for learner in learners.values():
        learner.catalog, learner.warm = out.catalog, out.warm
    out._modules = {**model._modules, "learners": nn.ModuleDict(learners)}
    return out


_served: weakref.WeakKeyDictionary[MML, weakref.ref[MML]] = weakref.WeakKeyDictionary()


def remember(given: MML, served: MML) -> None:
    """Note which model a recommender serves in the place of the one that it was given."""
    _served[given] = weakref.ref(served)


def lacking(model: MML) -> str:
    """What a recommender that was given a model has added or removed since, in words; empty if nothing is known.

    Example:
        >>> from metarec.datasets import planted
        >>> model = MML.build(planted(users=60, items=40))
        >>> lacking(model)
        ''
    """
    found = _served.get(model)
    served = None if found is None else found()
    if served is None:
        return ""
    added, hidden = len(served.catalog.items) - len(model.catalog.items), served.catalog.hidden
    removed, restored = len(hidden - model.catalog.hidden), len(model.catalog.hidden - hidden)
    counts = {"added": added, "removed": removed, "restored": restored}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _grown(learner: ModalityLearner, name: str, modalities: Sequence[Modality], size: int) -> ModalityLearner:
    """A learner of more items; ``modalities`` are those of all items."""
    items: Items = learner.items
    bare = items.items if isinstance(items, ColdItemGenerator) else items
    if isinstance(bare, IdItems):
        grown: Items = bare.grown(size)
    else:
        grown = cast(FeatureItems, bare).grown(next(m for m in modalities if m.name == name))
    if isinstance(items, ColdItemGenerator):
        grown = items.grown(grown, modalities)
    context = learner.context
    if isinstance(context, FeatureItems):
        context = context.grown(joined(modalities))
    candidates = nn.functional.pad(learner.candidates, (0, size - len(learner.candidates)))
    out = ModalityLearner(grown, learner.encoder, context=context, candidates=candidates)
    out.fitted = learner.fitted
    vars(out).update({name: value for name, value in vars(learner).items() if name in TOLD})
    return out.train(learner.training)
