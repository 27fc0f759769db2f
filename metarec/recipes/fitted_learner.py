"""A learner whose training and adaptation are chosen by validation, and which is then trained again on everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from metarec.data import Dataset
from metarec.meta import MetaLearner
from metarec.nn import ModalityLearner, record
from metarec.recipes import generating, sasrec
from metarec.recipes.adaptation import AdaptationSearch, Tried, best_of
from metarec.recipes.components import Setup
from metarec.recipes.early_stopping import EarlyStopping
from metarec.recipes.fit_stages import Stages
from metarec.recipes.nested_validation import at_most
from metarec.recipes.validation import Ranked, ranked
from metarec.types import EpisodeBatch, Method, Progress

EPOCHS = 200  # at most
STEPS = 16  # optimizer steps that an epoch should have
BATCH = (16, 128)  # users of a batch, at least and at most
DROP = 0.2  # probability with which one of several inputs is left out for an item
GENERATOR_EPOCHS = 10  # at most
TRAINING, GENERATING, ADAPTING = 10.0, 4.0, 6.0  # how much work each is beside other stages


@dataclass(frozen=True)
class Validation:
    """What a learner is judged by.

    Attributes:
        earlier: the clicks that it is trained on meanwhile.
        batches: users whom nothing is trained on, on its device.
        items: (I,) bool, what is ranked for them, on its device.
        exclude_seen: leave what a user has clicked out of lists.
    """

    earlier: Dataset
    batches: list[EpisodeBatch]
    items: Tensor
    exclude_seen: bool


@dataclass(frozen=True)
class Generator:
    """What a generator of cold items gave to a learner.

    Attributes:
        ndcg: of the learner with it, mean over users.
        gain: over the learner without, mean over users.
        error: standard error of the gain.
        epochs: of its training.
    """

    ndcg: float
    gain: float
    error: float
    epochs: int

    @property
    def pays(self) -> bool:
        """Whether the learner is better with it."""
        return self.gain > 0

    def interval(self) -> tuple[float, float]:
        """The mean, two standard errors of the gain to either side."""
        return self.ndcg - 2 * self.error, self.ndcg + 2 * self.error


class FittedLearner:
    """A SASRec of some inputs, with a generator of cold items where that pays.

    Args:
        inputs: ``"id"`` and names of modalities.
        setup: with the whole upstream side as data.
        validation: the earlier part, and users who come after it.
        stages: of the fit.
        adapts: whether procedures that adapt it to users are tried.
        share: of the time for choosing that is spent when this one is chosen.

    Attributes:
        name: of the learner.
        epochs: of its training.
        generator: what the generator gave; None if the items have no features.
        tried: procedures, and what they gave.
        stages_of_search: of the fit, in which it is chosen.
        last_stage: in which what was chosen is trained on everything.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        setup: Setup,
        validation: Validation,
        stages: Stages,
        *,
        adapts: bool,
        share: float,
    ) -> None:
        self.inputs, self.setup, self.validation, self.stages = tuple(inputs), setup, validation, stages
        self.adapts, self.share = adapts, share
        self.name = "SASRec " + "+".join(inputs)
        self.epochs = 0
        self.generator: Generator | None = None
        self.tried: tuple[Tried, ...] = ()
        self.last_stage = f"{self.name}: on everything"
        work = {"training": TRAINING}
        work |= {"generator": GENERATING} if setup.data.catalog.modalities else {}
        work |= {"adapting": ADAPTING} if adapts else {}
        search = {f"{self.name}: {stage}": share for stage, share in work.items()}
        self.stages_of_search = tuple(search)
        stages.plan({**search, self.last_stage: TRAINING})

    def search(self) -> Method:
        """Trained on the earlier part until it serves the validation users best, and adapting as it pays."""
        learner, data = self._untrained(self.validation.earlier), self.validation.earlier

        def trained() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            stopping = self._stopping(learner, share=0.6)
            self._go("training", stopping.through(self._train(learner, data, EPOCHS, after=stopping)))
            stopping.restore()
            return learner.state_dict(), {"epochs": stopping.best, "curve": stopping.curve}

        weights, told = self.stages.kept(f"{self.name}: training", trained)
        _take(learner, weights, "SASRec softmax", data)
        self.epochs = int(told["epochs"])
        if data.catalog.modalities:
            learner = self._generating(learner)
        return self._adapting(learner) if self.adapts else learner

    def _stopping(self, learner: ModalityLearner, *, share: float) -> EarlyStopping:
        data = self.validation.earlier
        return EarlyStopping(
            learner,
            lambda: self._rank(learner),
            steps=-(-len(data.user_codes) // _batch(data)),
            out_of_time=lambda: self.stages.search_is_over(share=share * self.share),
        )

    def _rank(self, learner: ModalityLearner) -> Ranked:
        asked = self.validation
        return ranked(learner, asked.batches, items=asked.items, exclude_seen=asked.exclude_seen, name=self.name)

    def _generating(self, learner: ModalityLearner) -> ModalityLearner:
        """With a generator, if the validation users are served better."""
        data = self.validation.earlier
        out = generating.with_generator(learner, data, seed=self.setup.seed)

        def trained() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            base = self._rank(learner).by_user()
            stopping = self._stopping(out, share=0.7)
            training = self._train_generator(out, data, GENERATOR_EPOCHS, after=stopping)
            self._go("generator", stopping.through(training))
            stopping.restore()
            reached = base if stopping.found is None else stopping.found.by_user()
            gain = reached - base
            error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
            found = Generator(float(reached.mean()), float(gain.mean()), error, stopping.best)
            return out.state_dict() if found.pays else {}, asdict(found)

        weights, told = self.stages.kept(f"{self.name}: generator", trained)
        self.generator = Generator(**told)
        if not self.generator.pays:
            return learner
        _take(out, weights, generating.STAGE, data)
        return out

    def _adapting(self, learner: ModalityLearner) -> Method:
        data = self.validation.earlier
        search = AdaptationSearch(
            learner,
            data,
            at_most(self.validation.batches, 500),
            items=self.validation.items,
            exclude_seen=self.validation.exclude_seen,
            seed=self.setup.seed,
            out_of_time=lambda: self.stages.search_is_over(share=0.9 * self.share),
        )

        def searched() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            self._go("adapting", search())
            trained = search.best is not None and search.best.epochs
            return search.model.state_dict() if trained else {}, {"tried": [one.told() for one in search.tried]}

        weights, told = self.stages.kept(f"{self.name}: adapting", searched)
        self.tried = tuple(Tried.of(one) for one in told["tried"])
        best = best_of(self.tried)
        if best is None:
            return learner
        meta = best.procedure.around(learner)
        if best.epochs:
            _take(meta, weights, "MAML", data)
        return meta

    def whole(self) -> Method:
        """Trained on the whole upstream side as it was chosen to be."""
        data, best, learner = self.setup.data, best_of(self.tried), self._untrained(self.setup.data)
        plain, generates = learner, self.generator is not None and self.generator.pays
        if generates:
            learner = generating.with_generator(plain, data, seed=self.setup.seed)
        model: ModalityLearner | MetaLearner = learner if best is None else best.procedure.around(learner)

        def over(epoch: int) -> bool:
            return self.stages.is_over()

        def trained() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            self._go("on everything", self._train(plain, data, self.epochs, after=over))
            if self.generator is not None and generates:
                training = self._train_generator(learner, data, self.generator.epochs, after=over)
                self._go("on everything", training)
            if best is not None and best.epochs and isinstance(model, MetaLearner):
                meta_training = best.procedure.train(model, data, best.epochs, seed=self.setup.seed, after=over)
                self._go("on everything", meta_training)
            return learner.state_dict(), {}

        weights = self.stages.kept(self.last_stage, trained)[0]
        _take(learner, weights, "SASRec softmax", data)
        if generates:
            _note(learner, generating.STAGE, data)
        if best is not None and best.epochs:
            _note(model, "MAML", data)
        return model.eval()

    def _untrained(self, data: Dataset) -> ModalityLearner:
        drop = DROP if len(self.inputs) > 1 else 0.0
        return sasrec.build(data, self.inputs, drop_inputs=drop, seed=self.setup.seed).to(self.setup.device)

    def _train(
        self, learner: ModalityLearner, data: Dataset, epochs: int, *, after: Callable[[int], bool]
    ) -> Iterator[Progress]:
        users, seed = _batch(data), self.setup.seed
        return sasrec.train(learner, data, epochs=epochs, users_per_batch=users, seed=seed, after=after)

    def _train_generator(
        self, learner: ModalityLearner, data: Dataset, epochs: int, *, after: Callable[[int], bool]
    ) -> Iterator[Progress]:
        users, seed = _batch(data), self.setup.seed
        return generating.train_generator(learner, data, epochs=epochs, users_per_batch=users, seed=seed, after=after)

    def _go(self, stage: str, training: Iterator[Progress]) -> None:
        for step in training:
            self.stages.step(f"{self.name}: {stage}", step)


def _batch(data: Dataset) -> int:
    return int(np.clip(len(data.user_codes) // STEPS, *BATCH))


def _take(model: ModalityLearner | MetaLearner, weights: Mapping[str, Tensor], stage: str, data: Dataset) -> None:
    """Give a model the weights of a stage, whether they were made now or kept."""
    model.load_state_dict(dict(weights))
    _note(model, stage, data)
    model.eval()


def _note(model: ModalityLearner | MetaLearner, stage: str, data: Dataset) -> None:
    """Record a stage of training, where it was not done in this process."""
    record.begin(model, data.time.max().item())
    record.begin_stage(model, stage)
    record.finish(model, stage)
