"""The contract of every model: encode users, score items, take new items and clicks, be saved and read back.

``encode(support, query) -> UserState`` does all that depends on weights: inner steps and a pass over the history.
``scores(state) -> Scores`` ranks the catalogue for such states, without the history. Evaluation, ensembles, serving and
storage all go that way, so a served user is an evaluated user.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.codecs import Codec, add_codec, codec_of
from metarec.data.dataset import Catalog, Dataset
from metarec.data.screening import screened
from metarec.learning import DAY, JUMP, Learned, Learning, learning_of
from metarec.scoring import Scores, UserState
from metarec.types import Examples, Scored, Scorer

T = TypeVar("T")
C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Saved:
    """A model as plain values: what :func:`metarec.save` writes and :func:`metarec.load` reads.

    Attributes:
        settings: plain JSON: strings, numbers, booleans, None, lists and dicts of them.
        tensors: by name.
        parts: other models that it is made of, by name.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, Model] = field(default_factory=dict)


class Snapshot(Protocol):
    """What encodes users and scores items by a model's numbers of one moment; the methods are those of the model."""

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """See :meth:`Model.encode`."""
        ...

    def encode_empty(self) -> UserState:
        """See :meth:`Model.encode_empty`."""
        ...

    def scores(self, state: UserState) -> Scores:
        """See :meth:`Model.scores`."""
        ...

    def user_weights(self, state: UserState) -> Tensor:
        """See :meth:`Model.user_weights`."""
        ...


class Model:
    """A base for models. A model of your own gives ``encode`` and ``scores``; the rest has defaults.

    It can then be evaluated, put into an ensemble and served. With :meth:`state`, :meth:`from_state` and
    :func:`register` it can be saved as well, with what is around it.

    Attributes:
        catalog: the items that it scores, from :meth:`attach` or the constructor; None before that.
        warm: (I,) bool, items seen upstream.
        repeat_share: see :func:`metarec.evaluate`.
        max_length: clicks of a history that it reads at most.
        negatives: per support example that it adapts to.
        learners: names of what :meth:`user_weights` is about.
        fitted: catalogue rows that its scores are measured by, the first so many; None for all.
        scales: by modality, how the features of new items are standardised.
        second: how many units of the data's times are a second.
        profile: by column, how profiles of users that it reads are encoded; empty where it reads none.
        learned: what came of the last :meth:`learn`; None before, and of a model that was read back.

    Example:
        >>> from metarec import Recommender
        >>> from metarec.datasets import planted
        >>> from metarec.scoring import DenseScores
        >>> class Latest(Model):
        ...     information = "upstream"
        ...     def item_mask(self):
        ...         return torch.arange(self.catalog.size) > 0
        ...     def encode(self, support, query, *, start=None, keep_weights=False):
        ...         return UserState({"active": torch.ones(query.target.numel()) > 0})
        ...     def scores(self, state):
        ...         codes = torch.arange(float(self.catalog.size))
        ...         return DenseScores(codes.expand(len(state), -1), self.item_mask())
        >>> Recommender(Latest().attach(planted(users=60, items=40))).adapt(["item3"]).recommend(k=2)
        [item39 (40.000), item38 (39.000)]
    """

    catalog: Catalog | None = None
    warm: NDArray[Any] | None = None
    repeat_share: float | None = None
    negatives: int = 1
    learners: Any = ()
    fitted: int | None = None
    scales: Any = MappingProxyType({})
    second: float = 1.0
    profile: Any = MappingProxyType({})
    learned: Learned | None = None

    def attach(self, data: Dataset) -> Self:
        """Note the items of an upstream side, and which of them were clicked there; returns itself."""
        self.catalog, self.warm, self.second = data.catalog, data.warm, data.second
        self.repeat_share = data.known_repeat_share
        return self

    def item_mask(self) -> Tensor:
        """(I,) bool, the items that it has something to say about."""
        raise NotImplementedError

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Adapt to B users and encode where each of their Q queries stands.

        Args:
            support: what each user has clicked.
            query: what is asked for.
            start: states, of as many users, whose kept weights the inner steps start from; Q is then 1.
            keep_weights: keep each user's adapted weights in the state, to go on from them.

        Returns:
            N = B * Q rows, all queries of the first user first.

        Raises:
            ValueError: if weights are to be kept of a model that has none of its own per user.
        """
        raise NotImplementedError

    def encode_empty(self) -> UserState:
        """A user without history, N = 1."""
        raise NotImplementedError

    def scores(self, state: UserState) -> Scores:
        """Score the catalogue for N users."""
        raise NotImplementedError

    def user_weights(self, state: UserState) -> Tensor:
        """(N, M) how much each of ``learners`` counts for each user."""
        return torch.zeros(len(state), 0)

    def snapshot(self) -> Snapshot:
        """What a recommender asks until it notices that a tensor of the model has changed.

        By default the model itself. One that computes something from its weights gives what it has computed.
        """
        return self

    def adapt(self, support: Examples) -> Scorer:
        """Adapt to B users; the result scores their examples."""
        return lambda query: dense(self, support, query)

    def add_items(self, added: Catalog) -> Self:
        """The same model with more items, which nobody has clicked yet; this one stays as it is.

        Raises:
            TypeError: if the model takes in no items; nothing has changed.
        """
        raise TypeError(f"add_items: {type(self).__name__} takes in no items; fit it anew on a catalogue that has them")

    def observe(self, clicks: Dataset) -> Self:
        """Move on by everybody's new clicks, in place; returns itself. Models that count nothing stay as they are.

        Args:
            clicks: of this catalogue's items, later than all that were counted before; users of any vocabulary.
        """
        return self

    def learn(self, clicks: Dataset, *, before: Dataset | None = None, how: Learning | None = None) -> Self:
        """A model that has learned on from everybody's new clicks; this one stays as it is, so it can serve meanwhile.

        Weights are trained on the clicks and on a replay of those before, by what they were trained with; counts move
        on. New users join, and items first clicked now get rows. The same clicks give the same weights, which are taken
        only if they are finite and rank held-out last clicks no worse than the old ones, beyond noise. Clicks that were
        delivered before, floods of one user and clocks that jump ahead are left out. ``learned`` of the result says it.

        Args:
            clicks: of this catalogue's items, later than all that were learned before; users of any vocabulary.
            before: the clicks before them, as far back as histories and the replay shall reach; more does not hurt.
            how: the settings of the training.

        Raises:
            ValueError: if a click is of no item of the catalogue, or earlier than the last one counted; names it.
        """
        how, day = how or Learning(), DAY * self.second
        kept = screened(clicks, before, day=day, most=(how.per_day, how.per_item), jump=JUMP * day)
        out = self._go_on(kept, before, how)
        new = {what: n - clicks.dropped.get(what, 0) for what, n in kept.dropped.items()}
        out.learned = replace(out.learned or Learned(), dropped={what: n for what, n in new.items() if n})
        return out

    def _go_on(self, clicks: Dataset, before: Dataset | None, how: Learning) -> Self:
        """Another model, which has learned on from clicks that nothing is wrong with."""
        if (continues := learning_of(type(self))) is None:
            return copy.copy(self).observe(clicks)
        return continues(self, clicks, before, how)  # type: ignore[no-any-return]

    def members(self) -> Mapping[str, Model]:
        """The models that it is made of, by name."""
        return {}

    def state(self) -> Saved:
        """All that :meth:`from_state` needs to build it again on the same catalogue.

        Raises:
            TypeError: if the class has none.
            ValueError: if this very object would not be built again; names what.
        """
        codec = codec_of(type(self))
        if codec is None:
            raise TypeError(f"{type(self).__name__} says no state(); give it state() and from_state() and register it")
        saved: Saved = codec.state(self)
        return saved

    @classmethod
    def from_state(cls, saved: Saved, catalog: Catalog, warm: NDArray[Any]) -> Self:
        """The model that :meth:`state` told of.

        Raises:
            ValueError: if what is told does not belong together; nothing in a file is trusted.
        """
        codec = codec_of(cls)
        if codec is None:
            raise TypeError(f"{cls.__name__} has no from_state()")
        model: Self = codec.from_state(cls, saved, catalog, warm)
        return model


_KINDS: dict[str, type] = {}


def register(model: C, codec: Codec | None = None) -> C:
    """Make a class known to :func:`metarec.load`, by its name; also a decorator.

    Args:
        model: a :class:`Model`; or a part of a learner, an ``nn.Module`` whose ``settings()`` gives, as plain JSON, the
            keyword arguments that it is made with.
        codec: says the state of its models, if the class itself does not.

    Raises:
        ValueError: if another class has that name.

    Example:
        >>> @register
        ... class Mine(Model):
        ...     pass
        >>> kind_of("Mine") is Mine
        True
    """
    known = _KINDS.setdefault(model.__name__, model)
    if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        raise ValueError(
            f"register: {known.__module__} has a model {model.__name__!r} already; give yours another name"
        )
    _KINDS[model.__name__] = model
    if codec is not None:
        add_codec(model, codec)
    return model


def is_registered(kind: type) -> bool:
    """Whether a class is the one that :func:`metarec.load` would take for its name."""
    return _KINDS.get(kind.__name__) is kind


def kind_of(name: str) -> type[Any]:
    """The registered class of a name.

    Raises:
        ValueError: if there is none; says how to register it.
    """
    if name not in _KINDS:
        raise ValueError(
            f"no class {name!r} is registered; import the module that has it, or call "
            f"metarec.register({name}) before loading"
        )
    return _KINDS[name]


def dense(model: Model, support: Examples, query: Examples) -> Scored:
    """Scores (B, Q, I) of the whole catalogue for each query."""
    state = model.encode(support, query)
    known, shape = model.item_mask(), query.target.shape
    values = model.scores(state).approximate(0, len(known)).view(*shape, -1)
    return Scored(values, values.new_zeros(*shape, 1), known.to(values.device), state.active.view(shape), model.fitted)
