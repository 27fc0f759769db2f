"""SASRec: one causal encoder over the history, of ids, features, or their sum; the learner that all others start from.

Source: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018; the losses that it is trained with here
are the full softmax (Klenitskiy and Vasilev, RecSys 2023), the sampled softmax, and gBCE (Petrov and Macdonald, RecSys
2023). Deviation from the original: post-norm blocks, as in the released MML code, so that its learners are the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.data.dataset import Dataset
from metarec.data.sampler import EpisodeSampler
from metarec.functional.losses import products, weighted_mean
from metarec.functional.scaling import FeatureScale
from metarec.nn import FeatureItems, IdItems, Items, ModalityLearner, SequenceEncoder, TableItems, record
from metarec.nn.items import drawn_once, has_rows, more_items
from metarec.nn.kinds import event_kinds
from metarec.nn.last_rows import rows_from
from metarec.recipes.features import scales_of, standardised
from metarec.recipes.next_item import CPU_USERS, GraphedLoss, every_click, softmax_loss
from metarec.recipes.optimizing import Backward
from metarec.recipes.sharded import is_sharded, sharded_backward
from metarec.recipes.training import TrainingRun
from metarec.types import EpisodeBatch, Examples, Modality, Progress

Loss = Literal["softmax", "sampled_softmax", "bpr", "gbce"]
COMPARED = 1 << 16  # vectors of targets and negatives of one pass on a CPU: what its caches hold
NEGATIVES = 64  # of a click, for the losses that sample them


class SummedItems(nn.Module):
    """The sum of an item's vectors, one from each source. What one source does not know, the others still describe.

    Args:
        sources: a table of ids and projections of features, say.
        drop: probability with which a source is left out for an item in training, so that each learns to stand alone.

    Example:
        >>> warm = torch.tensor([False, True, False])
        >>> SummedItems([IdItems(3, 4, known=warm), IdItems(3, 4)]).known.tolist()
        [False, True, True]
    """

    adapts_rows = True
    known: Tensor

    def __init__(self, sources: Sequence[Items], *, drop: float = 0.0) -> None:
        super().__init__()
        self.sources = nn.ModuleList(sources)  # type: ignore[arg-type]
        self.drop = drop
        self.register_buffer("known", torch.stack([s.known for s in sources]).any(0), persistent=False)

    def table(self) -> Tensor:
        """(I, D): the sum of what each source knows; in training each call leaves others out."""
        total: Tensor | float = 0.0
        for source in cast("Sequence[Items]", self.sources):
            keep = source.known
            if self.training and self.drop:
                keep = keep & (torch.rand(len(keep), device=keep.device) >= self.drop)
            total = total + source.table() * keep.unsqueeze(-1)
        return torch.as_tensor(total)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item codes (...)."""
        return F.embedding(ids, self.table(), padding_idx=0)

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        """Scores (..., I) of states (..., D), or (..., C) against ids (C,)."""
        return self.frozen().scores(state, ids)

    def with_more(self, size: int, modalities: Mapping[str, Modality]) -> SummedItems:
        """The same sources, each with more items; their weights are shared."""
        out = copy.copy(self)
        sources = [more_items(source, size, modalities) for source in cast("Sequence[Items]", self.sources)]
        out._buffers, out._modules = dict(self._buffers), {"sources": nn.ModuleList(sources)}  # type: ignore[arg-type]
        out.known = torch.stack([source.known for source in sources]).any(0)
        return out

    def rows_from(self, first: int) -> Tensor | None:
        """The last rows of the table without leaving any out, (I - first, D); None if a source does not give them."""
        sources = cast("Sequence[Items]", self.sources)
        found = [(rows_from(source, first), source.known[first:].unsqueeze(-1)) for source in sources]
        rows = [own * known for own, known in found if own is not None]
        return torch.as_tensor(sum(rows)) if len(rows) == len(sources) else None

    @torch.no_grad()
    def begin_rows(self, new: Tensor, vectors: Tensor) -> None:
        """Know more items, in place: the first source with rows gets what the others lack of ``vectors`` (I, D)."""
        rest = vectors
        sources = cast("Sequence[Items]", self.sources)
        for source in sources:
            if not has_rows(source):
                rest = rest - source.table() * source.known.unsqueeze(-1)
        for source in filter(has_rows, sources):
            cast(IdItems, source).begin_rows(new, rest)
            rest = torch.zeros_like(rest)
        self.known = torch.stack([source.known for source in sources]).any(0)

    def frozen(self) -> TableItems:
        """The sums, computed once."""
        return TableItems(self.table(), self.known)


def build(
    upstream: Dataset,
    inputs: Sequence[str] = ("id",),
    *,
    dim: int = 64,
    layers: int = 2,
    max_length: int = 50,
    dropout: float = 0.3,
    drop_inputs: float = 0.0,
    seed: int = 0,
) -> ModalityLearner:
    """An untrained SASRec; of data with events of several kinds, it reads them all.

    Args:
        upstream: gives the catalogue and the items seen.
        inputs: ``"id"`` and names of feature modalities; the vectors of several are summed.
        dim: D.
        layers: encoder blocks.
        max_length: longest history.
        dropout: of the encoder.
        drop_inputs: of several inputs, the probability with which one is left out for an item in training.
        seed: of the initial weights.

    Raises:
        ValueError: if there is no input, or the catalogue lacks a modality.

    Example:
        >>> from metarec.datasets import planted
        >>> learner = build(planted(users=60, items=40), ("id", "text"), dim=8)
        >>> for step in train(learner, planted(users=60, items=40), epochs=2):
        ...     pass
        >>> step.stage, step.epoch
        ('SASRec softmax', 2)
    """
    if not inputs:
        raise ValueError("SASRec: expected at least one of 'id' and the names of modalities, got none")
    warm = torch.from_numpy(upstream.warm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sources: list[Items] = []
        scales: dict[str, FeatureScale] = {}
        for name in inputs:
            if name == "id":
                sources.append(IdItems(upstream.catalog.size, dim, known=warm))
                continue
            own = scales_of(upstream.catalog, [name], upstream.catalog.size)
            sources.append(FeatureItems(standardised(upstream.catalog, own)[0], dim))
            scales |= own
        encoder = SequenceEncoder(dim, max_length=max_length, layers=layers, dropout=dropout)
        items = sources[0] if len(sources) == 1 else SummedItems(sources, drop=drop_inputs)
        kinds = event_kinds(upstream.catalog.kinds, dim)
        learner = ModalityLearner(items, encoder, candidates=warm, kinds=kinds)
    learner.scales = scales
    record.expect(learner)
    return learner.attach(upstream)


def train(
    learner: ModalityLearner,
    data: Dataset,
    *,
    objective: Loss = "softmax",
    epochs: int = 10,
    lr: float = 1e-3,
    users_per_batch: int = 128,
    negatives: int = NEGATIVES,
    seed: int = 0,
    after: Callable[[int], bool] | None = None,
) -> Iterator[Progress]:
    """Ordinary next-item training on every click of every user; Adam.

    Args:
        learner: trained in place, and marked with ``fitted_until``, the time of the last click in ``data`` or in
            that of an earlier training, if that is later.
        data: the clicks. Those of cold users are other users' later clicks: say so with ``information = "later"``.
        objective: the loss.
        epochs: over the users.
        lr: learning rate.
        users_per_batch: B.
        negatives: of a click, for the losses that sample them.
        seed: of batches, negatives and dropout.
        after: called with the number of epochs done after each; where it returns True, the training is over.

    Raises:
        ValueError: if the objective compares with all items, and their table is sharded.
    """
    sampler = EpisodeSampler(
        data,
        seed=seed,
        users_per_batch=users_per_batch,
        negatives=0 if objective == "softmax" else negatives,
        max_length=learner.encoder.position.shape[0] if isinstance(learner.encoder, SequenceEncoder) else 50,
    )
    if is_sharded(learner):
        loss = next_item_loss(learner, objective, negatives)
        backward: Backward = sharded_backward(learner, objective, loss, users_per_batch)
    else:
        backward = next_item_backward(learner, objective, negatives)
    run = TrainingRun(learner, seed=seed, settings={})
    record.begin(learner, data.time.max().item())
    learner.train()
    batches = partial(sampler.prefetch, device=learner.candidates.device)
    yield from run.stage(
        f"SASRec {objective}", epochs, learner.parameters(), lr, batches, sampler.users, backward, after
    )
    learner.eval()


def next_item_backward(learner: ModalityLearner, objective: Loss, negatives: int, since: float = -math.inf) -> Backward:
    """What adds the gradient of a batch's next-item loss, the mean over users, and returns the loss.

    Args:
        learner: the batches are sent to its device.
        objective: the loss.
        negatives: of a click, for the losses that sample them.
        since: ask only for clicks from this time on.
    """
    device = next(learner.parameters()).device
    loss = next_item_loss(learner, objective, negatives, since)

    def backward(batch: EpisodeBatch) -> float:
        each = math.prod(batch.query.history.shape[1:]) * (1 + negatives)
        parts = [batch] if objective == "softmax" else batch.chunks(min(CPU_USERS, max(1, COMPARED // each)))
        sums = []
        for part in parts:
            mean = loss(part) * (len(part) / len(batch))
            mean.backward()
            sums.append(mean.detach())
        return float(torch.stack(sums).sum())

    graphed = GraphedLoss(learner, loss, timeless=since == -math.inf)
    return backward if device.type == "cpu" else lambda batch: graphed.backward(batch.to(device))


def next_item_loss(
    learner: ModalityLearner, objective: Loss, negatives: int, since: float = -math.inf
) -> Callable[[EpisodeBatch], Tensor]:
    """What computes the next-item loss of a batch, the mean over its users."""

    def asked(part: EpisodeBatch) -> Examples:
        return every_click(part, since)

    def loss(batch: EpisodeBatch) -> Tensor:
        if objective == "softmax":
            return softmax_loss(learner, batch, asked)
        return _sampled_loss(learner, asked(batch), objective, negatives) / len(batch)

    return loss


def objective_of(learner: ModalityLearner) -> Loss:
    """The loss that a learner was trained with here; the full softmax where none is recorded.

    Example:
        >>> from metarec.datasets import planted
        >>> objective_of(build(planted(users=60, items=40), dim=8))
        'softmax'
    """
    said = [stage.removeprefix("SASRec ") for stage in record.trained(learner) if stage.startswith("SASRec ")]
    return cast(Loss, said[-1]) if said and said[-1] in get_args(Loss) else "softmax"


def _sampled_loss(learner: ModalityLearner, examples: Examples, objective: Loss, negatives: int) -> Tensor:
    """The sum of the users' mean losses against drawn negatives."""
    if objective == "gbce":
        return gbce_loss(learner, examples, negatives / max(1, len(learner.candidate_codes()) - 1)).sum()
    return learner.loss(examples, objective).sum()


def gbce_loss(learner: ModalityLearner, examples: Examples, rate: float, *, calibration: float = 0.75) -> Tensor:
    """Generalised binary cross-entropy of each user, (B,): what sampling negatives inflates is taken back.

    ``-beta log sigmoid(s+) - sum log(1 - sigmoid(s-))`` with ``beta = rate (t (1 - 1 / rate) + 1 / rate)``, so that
    t = 0 is the plain binary cross-entropy and t = 1 estimates the probabilities of the full softmax.

    Args:
        learner: scores the examples.
        examples: with negatives.
        rate: share of the items that is drawn as negatives of a click.
        calibration: t.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    items = drawn_once(learner.items)
    state = learner.states(examples, items)
    positive = (state * items(examples.target)).sum(-1)
    negative = products(state, items(examples.negatives))
    each = -beta * F.logsigmoid(positive) - F.logsigmoid(-negative).sum(-1)
    return weighted_mean(each, examples.weight)
