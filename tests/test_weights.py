"""Weights of clicks: read as they stand, kept through every cut, and what a training makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import metarec as mr
from fit_worlds import by_hand, sides
from metarec.data import Dataset, EpisodeSampler, load_atomic
from metarec.data.joining import followed_by, recent
from metarec.functional.losses import weighted_mean
from metarec.meta import MetaLearner
from metarec.recipes import sasrec
from metarec.recipes.training import fingerprint

WORLD, UP, _ = sides(users=80)
RNG = np.random.default_rng(0)
ROWS = pl.DataFrame(
    {
        "user_id": RNG.choice(["u1", "u2", "u3"], 60),
        "item_id": RNG.choice(list("abcdef"), 60),
        "rating": RNG.integers(1, 11, 60) / 2,
        "timestamp": RNG.permutation(60) + 1_400_000_000,
    }
)


def weighted(data: Dataset, *, seed: int = 0, most: float = 5) -> Dataset:
    return replace(data, weight=np.random.default_rng(seed).uniform(0.1, most, len(data)))


def by_click(data: Dataset) -> dict[tuple[object, object, float], float]:
    """The weight of each click, by user, item and time."""
    weight = np.ones(len(data)) if data.weight is None else data.weight
    users, items = data.users.decode(data.user), data.catalog.items.decode(data.item)
    return dict(zip(zip(users, items, data.time.tolist(), strict=True), weight.tolist(), strict=True))


def atomic(folder: Path) -> Path:
    names = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    path = folder / "shop.inter"
    path.write_text(
        "\t".join(f"{n}:{k}" for n, k in names.items())
        + "\n"
        + ROWS.write_csv(None, separator="\t", include_header=False)
    )
    return path


def test_frames_and_atomic_files_give_each_click_its_weight(tmp_path: Path) -> None:
    expected = {(u, i, float(t)): r for u, i, r, t in ROWS.rows()}
    for data in (Dataset.from_frame(ROWS, weight="rating"), load_atomic(atomic(tmp_path), weight_field="rating")):
        assert by_click(data) == expected
        assert "values of column 'rating', which is not read" not in data.dropped


def test_by_default_nothing_weighs(tmp_path: Path) -> None:
    assert Dataset.from_frame(ROWS, ignore=["rating"]).weight is None
    assert load_atomic(atomic(tmp_path), ignore=("rating",)).weight is None
    batch = next(EpisodeSampler(UP, queries=0.5).epoch(0))
    assert {*batch.query.weight.unique().tolist(), *batch.support.weight.unique().tolist()} == {0.0, 1.0}


def test_a_weight_goes_with_a_rule_on_the_same_column() -> None:
    data = Dataset.from_frame(ROWS, weight="rating", positive={"rating": 3})
    assert by_click(data) == {(u, i, float(t)): r for u, i, r, t in ROWS.rows() if r >= 3}


def test_rows_without_a_weight_are_left_out_and_counted() -> None:
    rows = ROWS.with_columns(pl.when(pl.int_range(60) % 10 > 0).then("rating").alias("rating"))
    data = Dataset.from_frame(rows, weight="rating")
    assert len(data) == 54 and data.dropped["rows without rating"] == 6


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, "'rating'.* 0;.*positive"), (-2.0, "'rating'.*-2"), ("x", "'rating'")]
)
def test_what_is_no_weight_is_refused(value: object, told: str, tmp_path: Path) -> None:
    bad = ROWS.with_columns(
        pl.Series("rating", [value, *ROWS["rating"][1:].cast(pl.String if value == "x" else pl.Float64)])
    )
    with pytest.raises(ValueError, match=told):
        Dataset.from_frame(bad, weight="rating")
    path = atomic(tmp_path)
    lines = path.read_text().splitlines()
    first = lines[1].split("\t")
    path.write_text("\n".join([lines[0], "\t".join([*first[:2], str(value), first[3]]), *lines[2:]]))
    with pytest.raises(ValueError, match=told):
        load_atomic(path, weight_field="rating")
    for weight in (np.ones(3), np.zeros(len(UP)), np.full(len(UP), np.nan)):
        with pytest.raises(ValueError, match="weight"):
            replace(UP, weight=weight)


def test_weights_stay_with_their_clicks() -> None:
    data = weighted(WORLD)
    known = by_click(data)
    up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    early = mr.data.examples.filter_interactions(data, data.time < 500_000)
    late = recent(data, since=1_500_000, clicks=4)
    moved = mr.data.examples.on_catalog(data, data.catalog, data.warm)
    for part in (up, down, early, late, moved):
        assert len(part) and by_click(part).items() <= known.items()
    plain = replace(mr.data.examples.filter_interactions(data, data.time >= 500_000), weight=None)
    both = followed_by(early, plain)
    assert by_click(both) == by_click(plain) | by_click(early)


def test_sasrec_weighs_each_users_losses() -> None:
    data = weighted(UP)
    learner = sasrec.build(data, dim=8, dropout=0.0, seed=1)
    expected = []
    for user in data.user_codes:
        rows = np.flatnonzero(data.user == user)
        history = torch.from_numpy(data.item[rows])
        allowed = torch.from_numpy(data.warm).clone()
        losses = []
        for place in range(1, len(rows)):
            own = mr.data.examples.filter_interactions(data, np.isin(np.arange(len(data)), rows[: place + 1]))
            scores = _scores(learner.eval(), own)
            losses.append(F.cross_entropy(scores.masked_fill(~allowed, -torch.inf), history[place]))
        weight = torch.from_numpy(data.weight[rows[1:]])
        expected.append(float((torch.stack(losses) * weight).sum() / weight.sum()))
    step = next(iter(sasrec.train(learner, data, epochs=1, users_per_batch=len(data.user_codes))))
    assert step.loss == pytest.approx(np.mean(expected), rel=1e-5)


def _scores(learner: mr.ModalityLearner, own: Dataset) -> torch.Tensor:
    """(I,) before the last click of a user."""
    item = torch.from_numpy(own.item)[None]
    one, zero = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    asked = mr.Examples(item[:, :-1], zero + item.shape[1] - 2, item[:, -1:], zero[..., None], one)
    with torch.no_grad():
        return learner.adapt(asked)(asked).scores[0, 0]


@pytest.mark.parametrize("value", [0.01, 1.0, 40.0])
def test_clicks_that_weigh_the_same_train_as_if_none_weighed(value: float) -> None:
    alike = replace(UP, weight=np.full(len(UP), value))
    learners = [sasrec.build(UP, dim=8) for _ in range(2)]
    for learner, data in zip(learners, (UP, alike), strict=True):
        for _ in sasrec.train(learner, data, epochs=2):
            pass
    for a, b in zip(*(learner.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(a, b)


def test_who_adapts_does_so_as_when_served() -> None:
    data = weighted(UP)
    batch, plain = (next(EpisodeSampler(d, queries=0.5).epoch(0)) for d in (data, UP))
    assert not torch.equal(batch.support.weight, plain.support.weight)
    meta = MetaLearner(sasrec.build(UP, dim=8, dropout=0.0), lr=0.1, steps=2)
    loss = meta.backward(batch)
    own = meta.adapt(plain.support).loss(batch.query, meta.objectives[1]).detach()
    assert loss == pytest.approx(float(own.mean()), rel=1e-4)
    assert loss != pytest.approx(float(meta.adapt(batch.support).loss(batch.query, meta.objectives[1]).detach().mean()))


def test_a_weighted_mean() -> None:
    loss, weight = torch.rand(4, 5), torch.rand(4, 5) * torch.tensor([[1.0], [0.01], [100.0], [0.0]])
    expected = [
        np.average(row, weights=w) if w.any() else 0.0 for row, w in zip(loss.numpy(), weight.numpy(), strict=True)
    ]
    torch.testing.assert_close(weighted_mean(loss, weight), torch.tensor(expected, dtype=torch.float32))


def test_a_checkpoint_is_of_its_weights() -> None:
    samplers = [EpisodeSampler(data) for data in (UP, weighted(UP), weighted(UP, seed=1))]
    assert len({fingerprint(sampler) for sampler in samplers}) == 3


ITEMS = 12


def ring(users: int, *, seed: int) -> Dataset:
    """Users on a ring of items: two steps ahead in most clicks, which weigh a tenth, and one step ahead in others."""
    rng, histories, weights = np.random.default_rng(seed), [], []
    for user in range(users):
        short = rng.random(15) < 0.35
        histories.append([1 + int(place) % ITEMS for place in user + np.cumsum(np.where(short, 1, 2))])
        weights.append(np.where(short, 1.0, 0.1))
    return replace(by_hand(histories, ITEMS), weight=np.concatenate(weights))


def test_what_weighs_more_is_learned() -> None:
    data, batch = ring(96, seed=0), next(EpisodeSampler(ring(96, seed=1), part="test").epoch(0))
    last = batch.query.history.gather(1, batch.query.position)
    shares = []
    for own in (replace(data, weight=None), data):
        learner = sasrec.build(own, dim=16, dropout=0.0)
        for _ in sasrec.train(learner, own, epochs=25, lr=0.01, users_per_batch=16):
            pass
        first = learner.eval().adapt(batch.support)(batch.query).scores[..., 1:].argmax(-1) + 1
        shares.append([float((first == 1 + (last - 1 + step) % ITEMS).float().mean()) for step in (1, 2)])
    (one, two), (one_weighted, two_weighted) = shares
    assert two > 0.7 > 0.3 > one
    assert one_weighted > 0.7 > 0.3 > two_weighted
