"""The cold-user protocol: adapt to each user's first clicks, rank the whole catalogue, report."""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarec.asking import WITHHELD, Ranked, check_read_alike, ranked, whose
from metarec.data.dataset import Dataset
from metarec.data.examples import leave_last_out
from metarec.data.sampler import LEAST_CLICKS, EpisodeSampler
from metarec.functional.histories import check_exclude_seen, leaves_out_seen, rule_in_words
from metarec.list_metrics import ListMeter
from metarec.meta import MetaLearner
from metarec.modes import device_of, evaluating
from metarec.nn.record import Record, longest_history, negatives_of, record_of
from metarec.report import Report
from metarec.types import EpisodeBatch, Method

STEPS = (0, 1, 2, 5, 10, 20, 50)


def evaluate(
    method: Method,
    data: Dataset,
    *,
    k: Sequence[int] = (5, 10, 20),
    part: Literal["validation", "test", "serving"] = "test",
    positions: int = 1,
    exclude_seen: bool | None = None,
    repeated: Literal["leave_out", "miss"] = "leave_out",
    users_per_batch: int = 512,
    seed: int = 0,
    max_length: int | None = None,
    negatives: int | None = None,
    category: str | None = None,
    progress: bool | str = False,
) -> Report:
    """Adapt to every user of a data set and rank the item that came next among all items.

    Many users at a time. Items that a method does not know come after those that it knows. A method that is an
    ``nn.Module`` runs on its own device and in evaluation mode, and is left in the mode it was in.

    Every figure belongs to what its method could know, which the method declares as ``information``:
    ``"upstream"``, nothing after the split but the user's own clicks; ``"live"``, everything strictly before the click
    that is asked for; ``"later"``, other cold users' later clicks too, which no one could know in time. A method that
    was fitted says until when as ``fitted_until``, in the units of the data; every training of metarec has its model
    say it. What says neither is reported as ``"later"``.

    Args:
        method: what to evaluate.
        data: the downstream side of a split.
        k: list lengths for recall, MRR and NDCG.
        part: ``"test"`` ranks each user's last item, ``"validation"`` the one before it, and ``"serving"`` the last
            one again, but adapts to all clicks before it. With it, ``max_length=K`` cuts every history to K clicks.
        positions: rank so many items of each user, from the last one back; each time everything after the item is
            taken away, and users with too few clicks left drop out.
        exclude_seen: leave what the user has clicked (among ``max_length`` clicks, where that is given) out of the
            ranking. By default as a :class:`metarec.Recommender` does: where fewer than 2% of the clicks upstream are
            repeats, by ``method.repeat_share`` or, if it has none, ``data.known_repeat_share``.
        repeated: what becomes, where seen items are left out, of targets that the user has clicked before, which no
            list could show: ``"leave_out"`` does not ask for them, ``"miss"`` counts them as missed. Both are counted.
        users_per_batch: users adapted to at a time.
        seed: of the negatives that the support examples carry.
        max_length: items of history kept per user; by default as many as the method reads (the largest
            ``max_length`` of its parts), or 50 where it does not say.
        negatives: N of the support examples that the method adapts to; by default as many as the method says, or 1.
        category: the column of ``catalog.attributes``, e.g. ``"genres"``, whose words miscalibration is about.
        progress: show a bar (needs tqdm); a string is its label.

    Beside recall, MRR and NDCG the report has, of the lists that users would be shown (of items that the method knows,
    by the same rule on seen items),

    - ``coverage``: the share of the catalogue that is in any list,
    - ``novelty``: the mean self-information of the items, :func:`~metarec.functional.lists.self_information` (bits),
    - ``diversity``: intra-list diversity by features, :func:`~metarec.functional.lists.diversity_at`,
    - ``popularity``: the mean number of clicks that the items had upstream, the bias towards popular items,
    - ``miscalibration``: how far a list is from what its user clicked, by head, middle and tail of the items, or by
      ``category``: :func:`~metarec.functional.lists.miscalibration`; 0 is calibrated.

    Novelty and popularity need the counts that both sides of a split carry, diversity needs features.

    Returns:
        The report, users in ascending order of their codes. ``info`` has the settings, what the method says of its
        training, and how many targets are repeats.

    Raises:
        ValueError: if a setting is out of range, a score is not finite (naming method, data and user), the scores do
            not cover the catalogue, ``data`` has no user with enough interactions, or the method was fitted on clicks
            of the time of the cold users and does not declare ``"later"``.

    Warns:
        UserWarning: if the method is not trained to the end, or no target is left to ask for.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> from metarec.recipes.popularity import Popularity
        >>> users, items = Vocabulary(["u", "v"], "user"), Catalog(Vocabulary(["a", "b", "c"]))
        >>> warm, time = np.array([False, True, True, False]), np.arange(4)
        >>> up = Dataset(users, items, np.array([1, 1, 1, 1]), np.array([2, 1, 2, 1]), time, warm)
        >>> down = Dataset(users, items, np.array([2, 2, 2, 2]), np.array([1, 2, 1, 3]), time + 4, warm)
        >>> evaluate(Popularity(up), down).rank
        array([3.])
    """
    _check_settings(k, part, positions, repeated)
    check_exclude_seen("evaluate", exclude_seen)
    known = check_information(method, data)
    known.warn(type(method).__name__)
    share, exclude_seen = _rule(method, data, exclude_seen)
    length = longest_history(method) if max_length is None else max_length
    negatives = negatives_of(method) if negatives is None else negatives
    rows, refused, meter = [], dict[str, int](), ListMeter(data, k, category)
    for position in range(positions):
        rest = leave_last_out(data, position, least=LEAST_CLICKS[part])
        if position and not len(rest):
            break
        sampler = EpisodeSampler(
            rest, seed=seed, users_per_batch=users_per_batch, part=part, negatives=negatives, max_length=length
        )
        refused = refused or dict(sampler.refused)
        found = _batches(method, sampler, max_length, exclude_seen=exclude_seen, length=max(k), progress=progress)
        rows += [_measured(batch, meter, leave_out=exclude_seen and repeated == "leave_out") for batch in found]
    what: dict[str, object] = {"method": type(method).__name__, "data": data.name, "part": part, "seed": seed}
    what |= {"exclude_seen": exclude_seen, "rule": rule_in_words(exclude_seen, share), "positions": positions}
    what |= {"max_length": length, "negatives": negatives, "refused": refused, **known.to_dict()}
    columns = [torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True)]
    return _report(columns, data, meter, what, repeated if exclude_seen else None)


def _report(
    columns: list[Any], data: Dataset, meter: ListMeter, info: dict[str, object], repeated: str | None
) -> Report:
    """The report of all rows; ``repeated`` is what becomes of targets that no list could show, None to ask for them."""
    user, target, rank, is_repeat, measured = columns
    rank = rank.astype(np.float64)
    if repeated == "miss":
        rank[is_repeat] = math.inf
    info |= {"repeated": repeated or "asked", "repeated_targets": int(is_repeat.sum())}
    order = np.argsort(user, kind="stable")
    if repeated == "leave_out":
        order = order[~is_repeat[order]]
    if not len(order):
        warnings.warn(
            f"evaluate: all {len(user)} targets of {data.name} were clicked by their users before, and a list without "
            "seen items shows none of them: there is nothing to ask for; keep seen items in with exclude_seen=False",
            stacklevel=3,
        )
    user, target, rank, is_repeat, measured = (c[order] for c in (user, target, rank, is_repeat, measured))
    lists = dict(zip(meter.names, measured.T, strict=True))
    return Report(user, target, rank, ~data.warm[target], meter.k, info, is_repeat, lists, meter.coverage())


def _check_settings(k: object, part: str, positions: object, repeated: str) -> None:
    """Refuse before anything is computed what would fail, or mean nothing, afterwards."""
    lengths = list(k) if isinstance(k, Sequence) and not isinstance(k, str) else []
    if not lengths or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in lengths):
        raise ValueError(f"evaluate: k must be list lengths of at least 1, as in k=(10,), got {k!r}")
    if part not in WITHHELD:
        raise ValueError(f"evaluate: part must be one of {list(WITHHELD)}, got {part!r}")
    if not isinstance(positions, Integral) or positions < 1:
        raise ValueError(f"evaluate: positions must be at least 1, got {positions!r}; expected a whole number")
    if repeated not in ("leave_out", "miss"):
        raise ValueError(f"evaluate: repeated must be 'leave_out' or 'miss', got {repeated!r}")


def _rule(method: Method, data: Dataset, exclude_seen: bool | None) -> tuple[float | None, bool]:
    """The share of repeats that decides whether seen items are left out, None where that was asked for; and whether."""
    if exclude_seen is not None:
        return None, exclude_seen
    said = getattr(method, "repeat_share", None)
    share = data.known_repeat_share if said is None else float(said)
    return share, leaves_out_seen(share)


def _batches(
    method: Method, sampler: EpisodeSampler, last: int | None, *, exclude_seen: bool, length: int, progress: bool | str
) -> Iterator[Ranked]:
    """The query examples of one epoch, ranked batch by batch."""
    label = progress if isinstance(progress, str) else f"evaluate {type(method).__name__}"
    device = device_of(method)
    with evaluating(method):

        def work(batch: EpisodeBatch) -> Ranked:
            return ranked(method, batch.to(device), sampler, last, exclude_seen=exclude_seen, length=length)

        for batch in _shown(sampler, label) if progress else sampler.epoch(0):
            try:
                yield work(batch)
            except ValueError as error:
                who, why = whose(work, batch, sampler.data) or ("", error)
                where = f"{type(method).__name__} on {sampler.data.name} ({sampler.part}{who})"
                raise ValueError(f"evaluating {where}: {why}") from why


def _measured(batch: Ranked, meter: ListMeter, *, leave_out: bool) -> tuple[Tensor, ...]:
    """The columns of a batch: user, target, rank, whether it is a repeat, and what is measured of its lists."""
    row, item = batch.history
    counted = ~batch.is_repeat.cpu() if leave_out else None
    lists = meter.measure(batch.lists.cpu(), (row.cpu(), item.cpu()), batch.owner.cpu(), counted)
    return batch.user, batch.target, batch.rank, batch.is_repeat, lists


def check_information(method: Method, data: Dataset) -> Record:
    """What a method says of its training, as far as that can be checked.

    Raises:
        ValueError: if it declares something else than ``"upstream"``, ``"live"`` or ``"later"``, or if it was fitted
            on clicks from the first click of ``data`` on and does not declare ``"later"``.
    """
    check_read_alike(method, data)
    name, found = type(method).__name__, record_of(method)
    until = found.fitted_until
    if found.information != "later" and until is not None and not until < data.time.min():
        raise ValueError(
            f"{name} was fitted on clicks until {until}, but {data.name} begins at {data.time.min()}: it has learned "
            "from clicks that come after those it is asked for. Fit it on the upstream side, or have it declare "
            "information = 'later', to be reported apart"
        )
    return found


def choose_steps(meta: MetaLearner, data: Dataset, candidates: Sequence[int] = STEPS, **settings: Any) -> int:
    """How many inner steps a new user should take: the number with the best MRR@10 on the validation clicks.

    Source: the test of the released MML code, which picks among up to 50 steps this way; one number serves all users.

    Args:
        meta: a learner with its step size and what adapts.
        data: the downstream side of a split; its test clicks are not read.
        candidates: the numbers to try. Of equally good ones the smallest is taken.
        settings: as for :func:`evaluate`.

    Raises:
        ValueError: if there is no candidate or nothing is asked for, or as for :func:`evaluate`.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.data import split_by_time
        >>> from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> learner = ModalityLearner(IdItems(up.catalog.size, dim=8), SequenceEncoder(dim=8))
        >>> meta = MetaLearner(learner, lr=0.0)  # steps of size 0 change nothing
        >>> choose_steps(meta, down, candidates=(5, 0, 1))
        0
    """
    if not candidates:
        raise ValueError("choose_steps: expected at least one number of steps to try, got none")
    found = {}
    for steps in sorted(candidates):
        trial = copy.copy(meta)
        trial.steps = steps
        found[steps] = evaluate(trial, data, k=(10,), part="validation", **settings).metrics["mrr@10"].mean
        if math.isnan(found[steps]):
            raise ValueError(f"choose_steps: {data.name} has no validation click to choose by, all are repeats")
    return max(found, key=found.__getitem__)


def _shown(sampler: EpisodeSampler, label: str) -> Iterator[EpisodeBatch]:
    """The batches of an epoch under a bar that counts users."""
    with importlib.import_module("tqdm").tqdm(total=sampler.users, desc=label, unit=" users") as bar:
        for batch in sampler.epoch(0):
            yield batch
            bar.update(len(batch))
