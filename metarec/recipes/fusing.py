"""Stage 3 of MML: the fusion of adapted learners."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from metarec import distributed
from metarec.data.dataset import Catalog
from metarec.data.sampler import EpisodeSampler
from metarec.functional.fusion import fuse_scored
from metarec.meta import MetaLearner
from metarec.meta.bank import Bank, fits
from metarec.meta.longer_bank import bank_after
from metarec.nn import AdaptiveFusion, ModalityLearner
from metarec.nn.frozen import wide
from metarec.nn.learner import TOLD
from metarec.nn.linear_scores import LinearScores
from metarec.nn.tabled import TabledModel
from metarec.recipes.config import MMLConfig
from metarec.recipes.fusion_loss import AdaptedUsers, FusionLoss
from metarec.recipes.optimizing import adam
from metarec.recipes.training import TrainingRun
from metarec.scoring import UserState
from metarec.types import EpisodeBatch, Examples, Progress, Scored, Scorer


class FusedBank(Bank):
    """Adapted learners and their fusion, frozen.

    Args:
        models: by name; each one that a :class:`~metarec.meta.bank.Bank` can hold.
        fusion: None for equal weights of the standardised scores.
        about: see :class:`~metarec.meta.bank.Bank`.
    """

    def __init__(self, models: Mapping[str, MetaLearner], fusion: AdaptiveFusion | None, **about: Any) -> None:
        super().__init__(models, **about)
        self.config: Any = None
        self.fusion = None if fusion is None else wide(copy.deepcopy(fusion)).eval().requires_grad_(requires_grad=False)

    def user_weights(self, state: UserState) -> Tensor:
        """(N, M) how much each learner counts for each user."""
        active, own = state.tensors["active"], state.tensors["state"]
        if self.fusion is None:
            return active / active.sum(-1, keepdim=True).clamp(min=1)
        empty, none = own.new_zeros(len(own), 1, 0), self.known[:0, 0]
        each = [Scored(empty, own[:, m, None], none, active[:, m, None]) for m in range(len(self.names))]
        return self.fusion.weights(each)[:, 0]

    @torch.no_grad()
    def scores(self, state: UserState) -> LinearScores:
        """The fused scores of N users."""
        share = self.user_weights(state)
        scale = torch.ones_like(share[0]) if self.fusion is None else self.fusion.scale
        return LinearScores.fused(self.tables, state, share, scale)


class FusedModel(TabledModel):
    """A base for modules that fuse adapted learners."""

    fusion: Any

    def named_metas(self) -> Mapping[str, MetaLearner]:
        """The meta-learners by name."""
        raise NotImplementedError

    def _bank_name(self) -> str:
        return f"bank {id(vars(self).get('config'))}"

    def _longer_bank(self, before: FusedBank) -> FusedBank | None:
        metas = self.named_metas()
        return bank_after(before, metas, self.warm) if all(map(fits, metas.values())) else None

    def _new_bank(self) -> FusedBank | None:
        """Learners and fusion frozen; None if a learner is of a kind unknown."""
        metas = self.named_metas()
        if not all(map(fits, metas.values())):
            return None
        ids = None if self.catalog is None else self.catalog.items.ids
        told: Any = {"fitted": self.fitted, "ids": ids, "warm": self.warm, "negatives": self.negatives}
        bank = FusedBank(metas, self.fusion, **told)
        bank.config = vars(self).get("config")  # whose id no other settings take meanwhile
        return bank

    def known_items(self) -> Tensor:
        """(I,) bool, items that some learner knows."""
        return torch.stack([meta.known_items() for meta in self.named_metas().values()]).any(0)


class FusedMethod(FusedModel, nn.Module):
    """Adapts every learner and fuses their scores.

    Args:
        metas: one per modality.
        fusion: an :class:`AdaptiveFusion`; None for equal weights of the standardised scores.
        names: of the learners, for messages.
    """

    def __init__(
        self, metas: Sequence[MetaLearner], fusion: AdaptiveFusion | None = None, *, names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.metas = nn.ModuleList(metas)
        self.fusion, self.names, self.fitted = fusion, names, metas[0].fitted
        self.learners = list(map(str, range(len(metas)))) if names is None else list(names)
        for name in TOLD:
            if getattr(metas[0], name, None) is not None:
                setattr(self, name, getattr(metas[0], name))

    def add_items(self, added: Catalog) -> Self:
        """The same fusion of learners of more items.

        Raises:
            TypeError: if a learner takes in no items.
        """
        metas = [cast(MetaLearner, meta).add_items(added) for meta in self.metas]
        return type(self)(metas, self.fusion, names=self.names).train(self.training).keep_bank_of(self)

    def named_metas(self) -> Mapping[str, MetaLearner]:
        """The meta-learners by name."""
        return dict(zip(self.learners, cast("list[MetaLearner]", list(self.metas)), strict=True))

    def adapt(self, support: Examples) -> Scorer:
        """Adapt every learner to B users; scoring raises ``ValueError`` where a learner's score is not finite."""
        scorers = [cast(MetaLearner, meta).adapt(support) for meta in self.metas]

        def score(examples: Examples) -> Scored:
            return fused([scorer(examples) for scorer in scorers], self.fusion, self.names)

        return score


def fused(scored: Sequence[Scored], fusion: AdaptiveFusion | None, names: Sequence[str] | None = None) -> Scored:
    """The learners' scores as one; the state is the weight that each modality had, (B, Q, M).

    Raises:
        ValueError: if a score or a weight is not finite.
    """
    known = torch.stack([s.item_mask for s in scored]).any(0)
    active = torch.stack([s.has_known_history for s in scored], -1)
    if fusion is None:
        weights = active / active.sum(-1, keepdim=True).clamp(min=1)
        scores = fuse_scored(scored, weights, names=names)
    else:
        weights, scores = fusion.weights(scored), fusion(scored, names)
    return Scored(scores, weights, known, active.any(-1), scored[0].fitted)


def fusion_users(sampler: EpisodeSampler, config: MMLConfig) -> tuple[EpisodeSampler, EpisodeSampler]:
    """The users that train the fusion, and those that train the learners and generators.

    Deviation: the released code takes the fusion's users from those of the learners (``variant="paper"`` does too).
    A fusion fitted on clicks that the learners have learned by heart trusts the one with the best memory, so here the
    two groups share no user.
    """
    codes = np.random.default_rng([sampler.seed, 3]).permutation(sampler.user_codes)
    count = min(len(codes), max(10, round(config.fusion_users * len(codes))))
    fusing = sampler.for_users(codes[:count])
    shared = config.variant == "paper" or len(codes) < 2 * count
    return fusing, sampler if shared else sampler.for_users(codes[count:])


def train_fusion(
    metas: Sequence[MetaLearner],
    fusion: AdaptiveFusion,
    sampler: EpisodeSampler,
    run: TrainingRun,
    config: MMLConfig,
) -> Iterator[Progress]:
    """Cross-entropy of the fused scores over the items seen upstream, with early stopping.

    Deviations: the released code trains on the support pairs that the learners were just fitted to; this trains on
    the query pairs of four fifths of the sampler's users and stops by those of the others. The best weights are kept
    as values.
    """
    if run.is_done("fusion"):
        return
    run.reseed("fusion", 0)
    chosen = np.random.default_rng([sampler.seed, 4]).permutation(sampler.user_codes)
    held_out = max(1, len(chosen) // 5)
    learners = [cast(ModalityLearner, meta.eval().learner) for meta in metas]
    watched = _adapted_users(metas, sampler.for_users(chosen[:held_out]))
    users = _adapted_users(metas, sampler.for_users(chosen[held_out:])) if len(chosen) > held_out else watched
    with torch.no_grad():
        frozen = [learner.task_view("encoder") for learner in learners]
    training, validation = (FusionLoss(fusion, frozen, some) for some in (users, watched))
    parameters = list(fusion.parameters())
    optimizer = adam(parameters, config.fusion_lr)
    best, best_loss, since = copy.deepcopy(fusion.state_dict()), float("inf"), 0
    for epoch in range(config.fusion_epochs):
        order = torch.randperm(len(training)).to(training.target.device)
        for rows in order.split(config.users_per_batch):
            optimizer.zero_grad(set_to_none=True)
            distributed.backward(lambda own: training(own) / len(own), rows, parameters)
            optimizer.step()
            run.mark()
        value = validation.mean()
        yield Progress("fusion", epoch + 1, config.fusion_epochs, len(chosen), len(chosen), value, 0.0)
        since = 0 if value < best_loss - 1e-4 else since + 1
        if since == 0:
            best, best_loss = copy.deepcopy(fusion.state_dict()), value
        elif since >= 5:
            break
    fusion.load_state_dict(best)
    run.finish("fusion")


def _adapted_users(metas: Sequence[MetaLearner], sampler: EpisodeSampler) -> AdaptedUsers:
    """Adapt the users of a sampler and keep the states of their query examples."""
    found: list[list[Tensor]] = [[] for _ in range(2 * len(metas))]
    targets = []
    device = next(metas[0].parameters()).device

    @torch.no_grad()
    def adapted(part: EpisodeBatch) -> list[Tensor]:
        states, active = zip(*(meta.adapt(part.support).encode_queries(part.query) for meta in metas), strict=True)
        return [*states, *active]

    for batch in sampler.epoch(0):
        batch = batch.to(device)
        real = batch.query.weight > 0
        targets.append(batch.query.target[real])
        for own, tensor in zip(found, distributed.spread(adapted, batch), strict=True):
            own.append(tensor[real])
    joined = [torch.cat(own) for own in found]
    return AdaptedUsers(joined[: len(metas)], joined[len(metas) :], torch.cat(targets))
