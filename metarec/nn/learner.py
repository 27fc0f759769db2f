"""A learner of one modality: items in front, an encoder over the history, scores against the items."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.functional import losses
from metarec.functional.attention import rows
from metarec.functional.kinds import items_of, kinds_of
from metarec.functional.log_sum_exp import log_sum_exp
from metarec.functional.scaling import FeatureScale
from metarec.nn.add_items import larger, standardised_by_name, with_catalog
from metarec.nn.former import FormerNames
from metarec.nn.frozen import as_table, longer_table, wide
from metarec.nn.full_softmax import users_softmax
from metarec.nn.items import IdItems, Items, TableItems, drawn_once
from metarec.nn.kinds import EventKinds
from metarec.nn.tabled import LearnerModel
from metarec.nn.touched import TouchedRows
from metarec.types import Examples, Scored

Objective = Literal["bpr", "sampled_softmax", "softmax"]
Adapts = Literal["encoder", "all"]
MOST_HELD = 1 << 15  # candidates whose scores are held for a loss
TOLD = (
    "catalog",
    "warm",
    "repeat_share",
    "second",
    "scales",
)  # of its items, besides their vectors


class ModalityLearner(FormerNames, LearnerModel, nn.Module):
    """A sequential recommender of one modality: scores the next item by ``user state . item vector``.

    Args:
        items: where item vectors come from (:class:`IdItems`, :class:`FeatureItems`, :class:`ColdItemGenerator`, or
            your own; see :class:`~metarec.nn.Items`). They are drawn once per loss.
        encoder: reads (x, keep, context) and returns the state after every prefix; with a true ``takes_positions``,
            reads (x, keep, context, at) and returns the states at the positions ``at``.
        context: items whose vectors make the attention feature-aware; none by default.
        candidates: (I,) bool, items that the full softmax compares with; default: the known items. Give it the items
            seen upstream, or cold items are only ever pushed away.
        kinds: vectors of the kinds of events, added to those of the items of a history. With it, histories are the
            events of all kinds; without, clicks alone.

    Example:
        >>> import torch
        >>> from metarec.nn import IdItems, SequenceEncoder
        >>> learner = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8))
        >>> examples = Examples(torch.tensor([[3, 1, 2]]), torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 5]]),
        ...                     torch.tensor([[[4], [4], [4]]]), torch.ones(1, 3))
        >>> learner.loss(examples).shape, learner(examples).scores.shape
        (torch.Size([1]), torch.Size([1, 3, 6]))
    """

    broadcasts = ()  # examples may have any leading dimensions; so may the parameters of what is inside
    linear = (
        True  # scores are products of what encode_queries() gives with item vectors; see metarec.nn.tabled.is_linear
    )
    objectives = ("bpr", "sampled_softmax", "softmax")
    candidates: Tensor
    fitted: int | None = None  # items that scores are measured by, the first so many; all by default
    scales: Mapping[str, FeatureScale] | None = None  # by which its features were standardised

    def __init__(
        self,
        items: Items,
        encoder: nn.Module,
        *,
        context: Items | None = None,
        candidates: Tensor | None = None,
        kinds: EventKinds | None = None,
    ) -> None:
        super().__init__()
        self.items = items
        self.encoder = encoder
        self.context = context
        self.kinds = kinds
        self.register_buffer("candidates", items.known if candidates is None else candidates, persistent=False)
        self._found: list[Tensor] = []  # the candidates, and their codes

    def candidate_codes(self) -> Tensor:
        """The codes of the candidates, found once: finding them makes a GPU wait."""
        if not self._found or self._found[0] is not self.candidates:
            self._found[:] = [self.candidates, self.candidates.nonzero().squeeze(-1)]
        return self._found[1]

    @property
    def max_length(self) -> int | None:
        """The longest history that the encoder takes, if it says so."""
        length: int | None = getattr(self.encoder, "max_length", None)
        return length

    def states(self, examples: Examples, items: Items | None = None) -> Tensor:
        """State of each example, (..., S, D): one pass over the history serves all of them.

        Args:
            examples: of any leading dimensions.
            items: where the history's vectors come from; the learner's items by default.
        """
        examples = self.reading(examples)
        history = examples.history
        x = self._with_kinds((items or self.items)(self._items_of(history)), history)
        return self._states([x, history > 0, self._context(history)], examples.position)

    def reading(self, examples: Examples) -> Examples:
        """The examples with the histories that it reads: events of all kinds if it has vectors of them, else clicks."""
        return examples if self.kinds is None else examples.with_events()

    def _items_of(self, history: Tensor) -> Tensor:
        codes: Tensor = history if self.kinds is None else items_of(history)
        return codes

    def _with_kinds(self, x: Tensor, history: Tensor) -> Tensor:
        return x if self.kinds is None else x + self.kinds(kinds_of(history))

    def _context(self, history: Tensor) -> Tensor | None:
        return None if self.context is None else self.context(self._items_of(history))

    def _states(self, read: Sequence[Tensor | None], position: Tensor) -> Tensor:
        if getattr(self.encoder, "takes_positions", False):
            state: Tensor = self.encoder(*read, position)
            return state
        return rows(self.encoder(*read), position)

    def loss(self, examples: Examples, objective: Objective = "bpr") -> Tensor:
        """Mean loss of each user's examples, (...).

        Args:
            examples: of any leading dimensions.
            objective: ``"bpr"`` or ``"sampled_softmax"`` against the examples' negatives, or ``"softmax"`` against
                all ``candidates``.

        Raises:
            ValueError: if the objective is not one of the three.
        """
        items = drawn_once(self.items)
        *read, position, vectors, weight = self.products(examples, items, negatives=objective != "softmax")
        state = self._states(read, position)
        scores = losses.products(state, vectors)
        if objective == "softmax":
            others = self._others(state, items)
            each = losses.softmax_among(scores[..., 0], others, self.candidates[examples.target])
        elif objective in ("bpr", "sampled_softmax"):
            each = getattr(losses, objective)(scores[..., 0], scores[..., 1:])
        else:
            raise ValueError(f"objective must be 'bpr', 'sampled_softmax' or 'softmax', got {objective!r}")
        return losses.weighted_mean(each, weight)

    def _others(self, state: Tensor, items: Items) -> Tensor:
        """Scores of the candidates; of many in a table, the log-sum-exp alone stands for them, (..., 1)."""
        codes = self.candidate_codes()
        if len(codes) <= MOST_HELD or type(items) not in (TableItems, IdItems):
            return items.scores(state, codes)
        return log_sum_exp(state, items.table().index_select(0, codes)).unsqueeze(-1)

    def softmax_sum(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """The full softmax of B users whose items are a table: the losses' sum, and the losses (B,) without gradients.

        The same as :meth:`loss`, with one derivative and without holding all scores.
        """
        examples = self.reading(examples)
        items = cast(TableItems, self.items)
        vectors = items.weight.index_select(0, self.candidate_codes())
        return users_softmax(self.states(examples), examples, items, vectors, self.candidates)

    def products(
        self, examples: Examples, items: Items | None = None, *, negatives: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """What the losses are made of: products of states and item vectors.

        Args:
            examples: of any leading dimensions.
            items: where the vectors come from; the learner's items by default.
            negatives: compare with the examples' negatives.

        Returns:
            the vectors of the history (..., L, D), which of them are real (..., L), those of the context, the positions
            of the states (..., S), the vectors of target and negatives (..., S, 1 + N, D) and the weights (..., S).
        """
        examples = self.reading(examples)
        history, among = examples.history, examples.target.unsqueeze(-1)
        if negatives:
            among = torch.cat([among, examples.negatives], -1)
        x, vectors = _gathered(items or drawn_once(self.items), self._items_of(history), among)
        x = self._with_kinds(x, history)
        return x, history > 0, self._context(history), examples.position, vectors, examples.weight

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Score the catalogue: scores (..., S, I), user states (..., S, D), has a known history (..., S)."""
        state, active = self.encode_queries(examples)
        return self.items.scores(state), state, active

    def encode_queries(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Encode the history up to each query: user states (..., S, D), has a known history (..., S)."""
        examples = self.reading(examples)
        history = examples.history
        seen = (self.items.known[self._items_of(history)] & (history > 0)).cumsum(-1)
        return self.states(examples), seen.gather(-1, examples.position) > 0

    def forward(self, examples: Examples) -> Scored:
        """Scores of the whole catalogue for each example."""
        scores, state, active = self.score(examples)
        return Scored(scores, state, self.items.known, active, self.fitted)

    def adapt(self, support: Examples) -> ModalityLearner:
        """Itself: without a meta-learner around it, a learner treats every user alike."""
        return self

    def add_items(self, added: Catalog) -> Self:
        """The same learner with more items, its weights shared; new items are known by their features alone.

        Raises:
            TypeError: if its items take in no more, which are named.
            ValueError: if it has no catalogue, or as for :meth:`Catalog.add_items <metarec.Catalog.add_items>`.
        """
        catalog = larger(self, added)
        modalities = standardised_by_name(catalog, self.scales, len(self.candidates))
        return with_catalog(self, catalog, modalities).keep_bank_of(self)

    def task_view(self, adapts: Adapts) -> ModalityLearner:
        """The learner as one user's task: what of it is still a parameter is what adapts.

        ``"encoder"``: the items are frozen into tables, so only the encoder has parameters. ``"all"``: the projections
        stay, and a table of items is wrapped in :class:`TouchedRows`, so that a user adapts the rows it touches. The
        vectors of kinds never adapt.
        """
        if adapts not in ("encoder", "all"):
            raise ValueError(f"adapts must be 'encoder' or 'all', got {adapts!r}")
        view = self._apart(self._modules)
        view.kinds = None if self.kinds is None else self.kinds.frozen()
        if adapts == "encoder":
            view.items, view.context = self.items.frozen(), None if self.context is None else self.context.frozen()
        elif self.items.adapts_rows:
            view.items = TouchedRows(self.items.frozen())
        return view

    def _apart(self, modules: dict[str, nn.Module | None]) -> Self:
        """The same with other parts, and without what it was told of its items."""
        out = copy.copy(self)
        for name in TOLD:
            vars(out).pop(name, None)
        out._modules, out._buffers = dict(modules), dict(self._buffers)
        out._found = [self.candidates, self.candidate_codes()]
        return out

    @torch.no_grad()
    def frozen(self, adapts: Adapts = "encoder") -> Self:
        """A copy in evaluation mode that later training does not reach, and whose item vectors are a table.

        Args:
            adapts: what of it is to adapt to users.
        """
        context: Any = self.context
        if context is not None:
            context = as_table(context) if adapts == "encoder" else wide(copy.deepcopy(context))
        parts = {"items": as_table(self.items), "context": context}
        others = {n: wide(copy.deepcopy(m)) for n, m in self._modules.items() if n not in parts and m is not None}
        out = self._apart({**others, **parts})
        out.candidates = self.candidates.clone()
        return out.eval()

    def frozen_after(self, before: Self) -> Self | None:
        """What :meth:`frozen` gives, from that of the learner that items were added to; None where that cannot be."""
        if type(self).frozen is not ModalityLearner.frozen:
            return None
        items = longer_table(before.items, self.items)
        context = None
        if self.context is not None and before.context is not None:
            context = longer_table(before.context, self.context)
        if items is None or (context is None) != (self.context is None):
            return None
        out = before._apart({**before._modules, "items": items, "context": context})
        out.candidates, out.fitted = self.candidates.clone(), self.fitted
        return out

    def task_tensors(self, support: Examples) -> dict[str, Tensor]:
        """Tensors that each of B users has of its own from the start, by name: the rows that a task view touches."""
        if not isinstance(self.items, TouchedRows):
            return {}
        return {f"items.{name}": value for name, value in self.items.per_user(support).items()}


def _gathered(items: Items, history: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of histories (..., L) and of (..., S, N) items; gathered at once, so is the gradient of a table."""
    if type(items) in (TableItems, IdItems):  # the same for all users, so that each part can be one piece of memory
        flat = items(torch.cat([history.flatten(), among.flatten()]))
        x, vectors = flat.split([history.numel(), among.numel()])
        return x.view(*history.shape, -1), vectors.view(*among.shape, -1)
    length, ids = history.shape[-1], torch.cat([history, among.flatten(-2)], -1)
    x, vectors = items(ids).split([length, ids.shape[-1] - length], -2)
    return x, vectors.unflatten(-2, among.shape[-2:])
