"""What MML is made of, as methods of their own: its learners as they are, adapted, trained, and fused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self, cast

from torch import nn

from metarec.data.dataset import Catalog, Dataset
from metarec.functional.scaling import FeatureScale
from metarec.meta import MetaLearner
from metarec.nn import ColdItemGenerator, ModalityLearner
from metarec.nn.add_items import larger, standardised_by_name, with_catalog
from metarec.nn.learner import TOLD
from metarec.recipes.config import MMLConfig
from metarec.recipes.fusing import FusedMethod, FusedModel
from metarec.types import Examples, Method, Scorer


class LearnersByModality(FusedModel, nn.Module):
    """A base for modules with one learner per modality, settings and a fusion: :class:`~metarec.MML`."""

    config: MMLConfig
    scales: Mapping[str, FeatureScale]

    def attach(self, data: Dataset) -> Self:
        """Note the items of an upstream side, for the learners too; returns itself."""
        for learner in self.learners.values():
            cast(ModalityLearner, learner).attach(data)
        return super().attach(data)

    def add_items(self, added: Catalog) -> Self:
        """A model that ranks more items, with the trained weights of this one, shared; nothing is trained.

        The new items are cold: their vectors come from the generators and the modality learners. The codes and vectors
        of the items that the model has stay as they are, and so does this model.

        Args:
            added: the new items, with features of any of the model's modalities, as they come; they are standardised
                by the features that the model was built with.

        Raises:
            ValueError: as for :meth:`Catalog.add_items <metarec.Catalog.add_items>`.
        """
        catalog = larger(self, added)
        modalities = standardised_by_name(catalog, self.scales, catalog.size - len(added.items))
        learners = {name: with_catalog(self.learner(name), catalog, modalities) for name in self.learners}
        out = copy.copy(self)
        out.catalog, out.warm = catalog, learners["id"].warm
        out._modules = {**self._modules, "learners": nn.ModuleDict(learners)}
        return out.keep_bank_of(self)

    @property
    def learners(self) -> nn.ModuleDict:
        """The learners by modality."""
        return cast(nn.ModuleDict, self._modules["learners"])

    def named_metas(self) -> Mapping[str, MetaLearner]:
        """The learners as they meet a new user, by name."""
        return {name: self.meta(name) for name in self.learners}

    def learner(self, name: str, *, generator: bool = True) -> ModalityLearner:
        """One modality's learner, with or without the generator in front of its items.

        Raises:
            ValueError: if there is no such learner.
        """
        if name not in self.learners:
            raise ValueError(f"MML: no learner {name!r}; there are {list(self.learners)}")
        whole = cast(ModalityLearner, self.learners[name])
        if generator or not isinstance(whole.items, ColdItemGenerator):
            return whole
        parts: dict[str, Any] = {"context": whole.context, "candidates": whole.candidates, "kinds": whole.kinds}
        bare = ModalityLearner(whole.items.items, whole.encoder, **parts)
        bare.fitted = whole.fitted
        vars(bare).update({name: value for name, value in vars(whole).items() if name in TOLD})
        return bare.train(whole.training)

    def meta(self, name: str, *, generator: bool = True) -> MetaLearner:
        """The learner as it meets a new user: the steps, their size and what adapts are those of the test."""
        config = self.config
        return MetaLearner(
            self.learner(name, generator=generator),
            lr=config.rate("test_lr", name),
            steps=config.steps(name),
            adapts=config.test_adapts,
            objectives=config.objectives,
        ).train(self.training)

    def training_meta(self, name: str, *, generator: bool = True) -> MetaLearner:
        """The learner as it is meta-trained: a few first-order steps of the encoder."""
        config = self.config
        return MetaLearner(
            self.learner(name, generator=generator),
            lr=config.inner_lr,
            steps=config.inner_steps,
            objectives=config.objectives,
            graphs=True,
        ).train(self.training)

    def adapt(self, support: Examples) -> Scorer:
        """Adapt every learner to B users; the fused scores of their examples come from what this returns."""
        return FusedMethod(list(self.named_metas().values()), self.fusion, names=list(self.learners)).adapt(support)

    def methods(self) -> dict[str, Method]:
        """Every part by itself and the fusions, by the names of the results table."""
        out: dict[str, Method] = {}
        for name in self.learners:
            out[f"{name}, not adapted"] = self.learner(name, generator=False)
            out[name] = self.meta(name, generator=False)
            if isinstance(self.learner(name).items, ColdItemGenerator):
                out[f"{name} + generator"] = self.meta(name)
        out["weight fusion"] = FusedMethod([self.meta(name) for name in self.learners], names=list(self.learners))
        out["adaptive fusion"] = self
        return out
