"""MML: multimodal meta-learning for cold-start sequential recommendation (Pan et al., CIKM 2022).

Three stages: meta-train one learner per modality; train a generator of vectors for cold items; train the fusion of
the learners. Where the released code and sense differ, this follows sense, and says so where it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog, Dataset
from metarec.data.sampler import EpisodeSampler
from metarec.modes import device_of
from metarec.nn import AdaptiveFusion, ColdItemGenerator, FeatureItems, IdItems, Items, ModalityLearner, SequenceEncoder
from metarec.nn.generator import warm_neighbours
from metarec.nn.kinds import event_kinds
from metarec.nn.record import begin, expect, trained
from metarec.recipes.config import MMLConfig
from metarec.recipes.features import joined, scales_of, standardised
from metarec.recipes.fusing import fusion_users, train_fusion
from metarec.recipes.mml_parts import LearnersByModality
from metarec.recipes.next_item import CPU_USERS, backward_softmax
from metarec.recipes.training import TrainingRun, settings_of, stages_of, training_only
from metarec.types import EpisodeBatch, Modality, Progress

ENCODER = ("dim", "max_length", "layers", "heads", "dropout")  # settings of its encoders


class MML(LearnersByModality):
    """One learner per modality behind one cold-item generator each, and their adaptive fusion.

    Build it with :meth:`build`; train it with :func:`train`; it is a :class:`~metarec.types.Method`, so it can be
    evaluated, and served by a :class:`~metarec.Recommender`.

    Args:
        catalog: the items and their features.
        warm: (I,) bool, items seen upstream.
        config: the settings.
        fitted: rows that features and scores are standardised by; later ones were added to a trained model.
        neighbours: (I, K) the nearest warm items of each item, if they are known already.
        device: where these are looked for, if not.

    Attributes:
        fitted_until: time of the last click that it was trained on; say it after a training loop of your own.
        trained: the stages of training that are done.
        repeat_share: :attr:`metarec.Dataset.repeat_share` of what it was built for; see :func:`metarec.evaluate`.

    Raises:
        ValueError: if the config names a modality that the catalogue does not have, or has no rate for a learner.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> model = MML.build(up, MMLConfig(dim=8, warmup_epochs=1, epochs=1, generator_epochs=1, fusion_epochs=1))
        >>> sorted({step.stage for step in train(model, EpisodeSampler(up, seed=0))})[:3]
        ['fusion', 'id', 'id generator']
    """

    catalog: Catalog
    warm: NDArray[np.bool_]
    fitted: int
    max_length: int
    fitted_until: float | None = None
    trained = property(trained)

    def __init__(
        self,
        catalog: Catalog,
        warm: NDArray[np.bool_],
        config: MMLConfig,
        *,
        fitted: int | None = None,
        neighbours: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.catalog, self.warm, self.config = catalog, warm, config
        self.max_length, self.negatives = config.max_length, config.negatives
        self.fitted = catalog.size if fitted is None else fitted
        seen = torch.from_numpy(warm)
        names = sorted(catalog.modalities) if config.modalities is None else config.modalities
        self.scales = scales_of(catalog, names, self.fitted)
        modalities = standardised(catalog, self.scales)
        context: Items | None = FeatureItems(joined(modalities), config.dim) if modalities else None
        parts: dict[str, tuple[Items, Items | None]] = {"id": (IdItems(catalog.size, config.dim, known=seen), context)}
        for modality in modalities:
            parts[modality.name] = FeatureItems(modality, config.dim), None
        for name in parts:  # rates that are missing are missed before anything is trained
            _ = config.rate("lr", name), config.rate("test_lr", name), config.steps(name)
        learners = {}
        if modalities and neighbours is None:
            neighbours = warm_neighbours(modalities, seen, config.neighbours, device)
        for name, (items, aware) in parts.items():
            if neighbours is not None:
                items = self._generator(items, modalities, seen, neighbours)
                expect(items, f"{name} generator")
            encoder = SequenceEncoder(**{n: getattr(config, n) for n in ENCODER})
            expect(encoder, f"{name} warm-up", name)
            kinds = event_kinds(catalog.kinds, config.dim, f"{name} warm-up", name)
            learners[name] = ModalityLearner(items, encoder, context=aware, candidates=seen, kinds=kinds)
            vars(learners[name]).update(fitted=self.fitted, catalog=catalog, warm=warm, scales=self.scales)
        self._modules["learners"] = nn.ModuleDict(learners)
        self.fusion = AdaptiveFusion(len(learners), config.dim)
        expect(self)
        expect(self.fusion, "fusion")

    def _generator(
        self, items: Items, modalities: Sequence[Modality], seen: Tensor, neighbours: Tensor
    ) -> ColdItemGenerator:
        config = self.config
        return ColdItemGenerator(
            items,
            modalities,
            seen,
            dim=config.dim,
            neighbours=neighbours,
            probability=config.generated,
            variant=config.variant,
        )

    @classmethod
    def build(
        cls,
        upstream: Dataset,
        config: MMLConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> MML:
        """An untrained model for the upstream side of a split.

        Args:
            upstream: gives the catalogue and the items seen.
            config: the settings; default :class:`MMLConfig`.
            seed: of the initial weights.
            device: where the model is; a GPU finds the neighbours of many items there, too, and exactly.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(upstream.catalog, upstream.warm, config or MMLConfig(), device=device)
        return model.attach(upstream).to(device)


def train(
    model: MML, sampler: EpisodeSampler, *, epochs: int | None = None, checkpoint: str | Path | None = None
) -> Iterator[Progress]:
    """All stages of MML, reported step by step.

    Args:
        model: trained in place.
        sampler: the upstream users; its seed is the seed of the training. Batch size, queries, negatives and history
            length are taken from the model's config.
        epochs: of meta-training, if not the config's.
        checkpoint: a file written after every epoch; if it exists, training goes on from there to the same result.
            The model must be built as it was built then, with the same seed.

    Raises:
        ValueError: if the sampler's items are not the model's, or the checkpoint is damaged or of another training.
        FloatingPointError: if a loss is not finite.
    """
    config = model.config
    if sampler.data.catalog.items != model.catalog.items:
        raise ValueError(
            f"train: the model was built for {model.catalog.items}, and the sampler's data {sampler.data.name!r} have "
            f"other items, {sampler.data.catalog.items}; build the model from the data that train it"
        )
    same = {n: getattr(config, n) for n in ("users_per_batch", "queries", "negatives", "max_length")}
    sampler = replace(sampler, part="train", **same)
    fusing, others = fusion_users(sampler, config)
    settings, epochs = settings_of(config, sampler, epochs), config.epochs if epochs is None else epochs
    generating = [n for n in model.learners if isinstance(model.learner(n).items, ColdItemGenerator)]
    stages = stages_of(config, list(model.learners), generating, epochs)
    run = TrainingRun(model, seed=sampler.seed, settings=settings, checkpoint=checkpoint, stages=stages)
    begin(model, sampler.data.time.max().item())
    model.train()
    for name in model.learners:
        yield from warm_up(model, name, others, run)
        yield from meta_train(model, name, others, run, epochs=epochs)
    for name in model.learners:
        yield from train_generator(model, name, others, run)
    yield from train_fusion([model.training_meta(name) for name in model.learners], model.fusion, fusing, run, config)
    model.eval()


def warm_up(model: MML, name: str, sampler: EpisodeSampler, run: TrainingRun) -> Iterator[Progress]:
    """Before stage 1: ordinary next-item training on every click. Deviation: the released code starts from noise."""
    learner, config = model.learner(name, generator=False), model.config
    every_click = replace(sampler, queries=config.max_length)

    def backward(batch: EpisodeBatch) -> float:
        batch = batch.to(device_of(model))
        if config.objectives[1] == "softmax":
            return backward_softmax(learner, batch, lambda part: part.query)
        total = 0.0
        for part in batch.chunks(CPU_USERS if device_of(model).type == "cpu" else len(batch)):
            loss = learner.task_view("encoder").loss(part.query, config.objectives[1]).sum() / len(batch)
            loss.backward()
            total += float(loss.detach())
        return total

    yield from run.stage(
        f"{name} warm-up",
        config.warmup_epochs,
        learner.parameters(),
        config.rate("lr", name),
        partial(every_click.prefetch, device=device_of(model)),
        every_click.users,
        backward,
    )


def meta_train(model: MML, name: str, sampler: EpisodeSampler, run: TrainingRun, *, epochs: int) -> Iterator[Progress]:
    """Stage 1: first-order MAML over users; the inner steps move the encoder, the outer steps everything."""
    meta = model.training_meta(name, generator=False)
    yield from run.stage(
        name,
        epochs,
        meta.parameters(),
        model.config.rate("lr", name),
        partial(sampler.prefetch, device=device_of(model)),
        sampler.users,
        lambda batch: meta.backward(batch.to(device_of(model))),
    )


def train_generator(
    model: MML, name: str, sampler: EpisodeSampler, run: TrainingRun, *, epochs: int | None = None
) -> Iterator[Progress]:
    """Stage 2: the same meta-learned loss; of what is trained, only the generator; some items take its vector."""
    meta = model.training_meta(name)
    generator = cast(ModalityLearner, model.learners[name]).items
    if not isinstance(generator, ColdItemGenerator):
        return
    trained = [*generator.projections.parameters(), *generator.attentions.parameters()]

    encoder = meta.learner.encoder
    adapting = [parameter for parameter in encoder.parameters() if parameter.requires_grad]

    def backward(batch: EpisodeBatch) -> float:
        with training_only(model, [*trained, *adapting]):  # for the step alone: a training may be left between two
            loss = meta.backward(batch.to(device_of(model)))
        encoder.zero_grad()  # it adapts, but is not trained
        return loss

    yield from run.stage(
        f"{name} generator",
        model.config.generator_epochs if epochs is None else epochs,
        trained,
        model.config.generator_lr,
        partial(sampler.prefetch, device=device_of(model)),
        sampler.users,
        backward,
    )
