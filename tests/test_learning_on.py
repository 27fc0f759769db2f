"""Learning on from new clicks: what is trained on, that the old model stays, and that nothing jumps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metarec
from learner_worlds import shaken
from metarec import Dataset, EpisodeSampler, MetaLearner, Vocabulary
from metarec.data.examples import filter_interactions
from metarec.data.joining import TWICE, RecentSampler, followed_by, recent
from metarec.datasets import PLANTED_SPLIT
from metarec.learning import Learning
from metarec.nn.first_clicks import begin_rows, own_weights
from metarec.recipes import EASE, MML, Ensemble, LivePopularity, sasrec
from metarec.recipes.learning_on import begin_of_replay, replayed
from metarec.recipes.metalearned import maml
from metarec.recipes.next_item import every_click
from metarec.recipes.sasrec import SummedItems
from tiny import CONFIG, DOWN, UP

ALWAYS = Learning(replay=1e6)  # all that came before
MODELS = ("ids", "summed", "meta-trained", "adapting", "mml", "ensemble")


def learner(*inputs: str, dropout: float = 0.3, drop: float = 0.0) -> Any:
    made = sasrec.build(UP, inputs or ("id",), dim=8, layers=1, dropout=dropout, drop_inputs=drop)
    for _ in sasrec.train(made, UP, epochs=1):
        pass
    return made


def model(kind: str) -> Any:
    if kind == "ids":
        return learner()
    if kind == "summed":
        return learner("id", "text", drop=0.2)
    if kind == "adapting":
        return MetaLearner(learner("id"), lr=0.1, steps=2, objectives=("softmax", "softmax")).eval()
    if kind == "meta-trained":
        meta = MetaLearner(learner("id"), lr=0.1, steps=2, objectives=("softmax", "softmax"))
        for _ in maml(meta, EpisodeSampler(UP, queries=0.5), epochs=1):
            pass
        return meta
    if kind == "mml":
        return shaken(MML.build(UP, CONFIG)).eval()
    live = LivePopularity(UP, window=1e9)
    return Ensemble({"live": live, "ease": EASE(UP), "sasrec": learner("id", "text")}, UP)


def weights(of: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in of.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def scores(of: Any, data: Dataset = DOWN) -> Tensor:
    batch = next(EpisodeSampler(data, part="serving", negatives=2).epoch(0))
    found: Tensor = of.scores(of.encode(batch.support, batch.query)).approximate(0, data.catalog.size)
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_the_old_model_stays_and_the_same_clicks_give_the_same_weights(kind: str) -> None:
    old = model(kind)
    before, asked, drawn = weights(old), scores(old), torch.random.get_rng_state()
    once, again = (old.learn(DOWN, before=UP) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert same(weights(old), before)
    assert torch.equal(scores(old), asked)
    assert not same(weights(once), before)
    assert same(weights(once), weights(again))
    assert torch.equal(scores(once), scores(again))
    assert type(once) is type(old)
    assert np.array_equal(once.warm, UP.warm | (np.bincount(DOWN.item, minlength=len(UP.warm)) > 0))
    assert once.fitted_until == DOWN.time.max() if kind != "ids" else True
    assert once.training == old.training


@pytest.mark.parametrize("kind", MODELS)
def test_a_learned_model_is_saved_and_read_back(kind: str, tmp_path: Path) -> None:
    learned = model(kind).learn(DOWN, before=UP)
    metarec.save(learned, tmp_path / "model.safetensors")
    again = metarec.load(tmp_path / "model.safetensors")
    assert torch.equal(scores(again), scores(learned))
    assert np.array_equal(again.warm, learned.warm)
    later = replace(DOWN, time=DOWN.time + PLANTED_SPLIT)
    assert same(weights(again.learn(later, before=UP)), weights(learned.learn(later, before=UP)))


def test_with_a_replay_of_everything_it_is_an_epoch_of_ordinary_training() -> None:
    every = followed_by(UP, DOWN)
    every = replace(every, warm=np.bincount(every.item, minlength=every.catalog.size) > 0)
    old = learner("id", dropout=0.0)
    usual = own_weights(old)
    begin_rows(usual, every.warm & ~UP.warm)
    for _ in sasrec.train(usual, every, epochs=1):
        pass
    assert same(weights(old.learn(DOWN, before=UP, how=ALWAYS)), weights(usual))


def test_only_clicks_of_the_replay_are_asked_for() -> None:
    since = float(np.quantile(UP.time, 0.7))
    late = recent(UP, since, 6)
    for user in UP.user_codes.tolist():
        own, kept = UP.user == user, late.user == user
        is_late = (UP.time[own] >= since).any()
        assert late.item[kept].tolist() == (UP.item[own][-6:].tolist() if is_late else [])
    wanted = sorted(zip(late.user[late.time >= since], late.item[late.time >= since], strict=True))
    first = dict(zip(late.user[::-1].tolist(), late.item[::-1].tolist(), strict=True))
    begun = {user for user in first if late.time[late.user == user][0] >= since}
    for user in begun:
        wanted.remove((user, first[user]))  # nothing is before it
    asked = []
    for batch in EpisodeSampler(late, max_length=5).epoch(0):
        examples = every_click(batch, since)
        real = examples.weight > 0
        asked += list(
            zip(batch.user[:, None].expand_as(real)[real].tolist(), examples.target[real].tolist(), strict=True)
        )
    assert sorted(asked) == [(int(user), int(item)) for user, item in wanted]
    for batch in RecentSampler(late, max_length=5, queries=0.5, since=since).epoch(0):
        time = batch.query.time
        assert time is not None
        assert bool(((batch.query.weight > 0) <= (time >= since)).all())
        assert bool((batch.query.weight.sum(-1) > 0).all())


def test_what_is_older_than_the_replay_and_no_history_changes_nothing() -> None:
    until = float(DOWN.time.min())
    how = Learning(replay=100, replay_users=0)
    since = until - 100 * 86_400 * UP.second
    idle = np.isin(UP.user, UP.user_codes[[UP.time[UP.user == u].max() < since for u in UP.user_codes]])
    assert idle.any() and not idle.all()
    old = learner("id")
    assert same(
        weights(old.learn(DOWN, before=UP, how=how)),
        weights(old.learn(DOWN, before=filter_interactions(UP, ~idle), how=how)),
    )


@pytest.mark.parametrize("name", ["replay", "replay_users", "epochs", "lr", "users_per_batch", "seed"])
def test_each_setting_does_something(name: str) -> None:
    old, usual = learner("id"), Learning()
    assert usual == replace(usual, replay=14, replay_users=512, epochs=1, lr=1e-3, users_per_batch=128, seed=0)
    assert (usual.keep_optimizer, usual.held_out, usual.per_day, usual.per_item) == (False, 256, 200, 10)
    usual = replace(usual, replay_users=0) if name == "replay" else usual
    other = {"replay": 1e3, "replay_users": 0, "epochs": 2, "lr": 2e-3, "users_per_batch": 4, "seed": 1}[name]
    given = replace(usual, **{name: other})
    assert not same(*(weights(old.learn(DOWN, before=UP, how=how)) for how in (usual, given)))
    with pytest.raises(ValueError, match=str(-1)):
        replace(usual, **{name: -1})


def test_a_replay_reaches_back_to_as_many_users_as_asked_for() -> None:
    new, day, every = float(DOWN.time.min()), 4_000.0, followed_by(UP, DOWN)
    last = sorted((every.time[every.user == user].max() for user in every.user_codes), reverse=True)
    older = [float(time) for time in last if time < new]
    for users in (1, 7, len(older), len(older) + 9):
        found = begin_of_replay(every, new, Learning(replay=1, replay_users=users), day)
        assert found == min(new - day, older[min(users, len(older)) - 1])
    assert begin_of_replay(every, new, Learning(replay=1e6), day) == new - 1e6 * day
    assert begin_of_replay(DOWN, new, Learning(replay=2), day) == new - 2 * day


def test_of_the_replay_as_many_users_are_drawn_as_clicked_something_new_and_not_the_same_each_time() -> None:
    drawn = []
    for new in (UP.time.max() * 0.8, UP.time.max() * 0.8 + 1):
        late = {int(user) for user in UP.user_codes if UP.time[UP.user == user].max() >= new}
        found = replayed(UP, float(new), Learning(replay_users=1))
        assert late < set(found.user_codes.tolist()) and len(found.user_codes) == 2 * len(late)
        for user in found.user_codes:
            assert found.item[found.user == user].tolist() == UP.item[UP.user == user].tolist()
        again = replayed(UP, float(new), Learning(replay_users=1))
        assert np.array_equal(again.user, found.user)
        drawn.append(set(found.user_codes.tolist()) - late)
    assert drawn[0] != drawn[1]
    assert len(replayed(UP, float(new), Learning(replay_users=len(late) + 3)).user_codes) == 2 * len(late) + 3
    assert replayed(UP, float(new), Learning()) is UP


NEW = np.bincount(DOWN.item, minlength=len(UP.warm)).astype(bool) & ~UP.warm


@pytest.mark.parametrize("kind", ["summed", "mml"])
def test_no_score_jumps_when_an_item_gets_a_row(kind: str) -> None:
    old = model(kind)
    new = own_weights(old)
    for part in list(new.modules()):
        if isinstance(part, metarec.ModalityLearner):
            begin_rows(part, NEW)
    assert NEW.any()
    torch.testing.assert_close(scores(new), scores(old), rtol=1e-4, atol=1e-5)
    tables = [m.items for m in new.modules() if isinstance(m, metarec.ModalityLearner) and hasattr(m.items, "cold")]
    assert any(not bool(items.cold[torch.from_numpy(NEW)].any()) for items in tables) == (kind == "mml")
    if kind == "summed":
        assert bool((new.items.sources[0].known == torch.from_numpy(UP.warm | NEW)).all())


def test_an_item_of_ids_alone_begins_at_the_mean_of_the_others() -> None:
    old = learner("id")
    new = own_weights(old)
    begin_rows(new, NEW)
    mean = torch.stack([old.items.weight[code] for code in np.flatnonzero(UP.warm)]).mean(0)
    torch.testing.assert_close(new.items.weight[torch.from_numpy(NEW)], mean.expand(int(NEW.sum()), -1))
    kept = torch.from_numpy(~NEW)
    assert torch.equal(new.items.weight[kept], old.items.weight[kept])
    assert new.items.known.tolist() == (UP.warm | NEW).tolist() == new.candidates.tolist()


def test_two_tables_of_rows_add_up_to_the_vector_that_was() -> None:
    known = torch.from_numpy(UP.warm)
    sources = [metarec.IdItems(len(UP.warm), 4, known=known) for _ in range(2)]
    items = SummedItems(sources)
    wanted = torch.randn(len(UP.warm), 4)
    items.begin_rows(torch.from_numpy(NEW), wanted)
    torch.testing.assert_close(items.table()[torch.from_numpy(NEW)], wanted[torch.from_numpy(NEW)])


def test_live_counts_of_an_ensemble_are_those_of_all_clicks() -> None:
    old = model("ensemble")
    learned, every = old.learn(DOWN, before=UP), LivePopularity(followed_by(UP, DOWN), window=1e9)
    assert torch.equal(scores(learned.members()["live"]), scores(every))
    assert not torch.equal(scores(old.members()["live"]), scores(every))
    assert learned.members()["ease"].fitted_until == UP.time.max()


def test_users_may_be_of_another_vocabulary() -> None:
    codes = np.sort(DOWN.user_codes)
    users = Vocabulary(DOWN.users.decode(codes.tolist()), "user")
    own = replace(DOWN, users=users, user=np.searchsorted(codes, DOWN.user) + 1)
    both, joined = followed_by(UP, DOWN), followed_by(UP, own)
    assert len(joined.users) == len(UP.user_codes) + len(codes)
    history = {name: both.item[both.user == code].tolist() for code, name in enumerate(both.users.ids, 1)}
    for code, name in enumerate(joined.users.ids, 1):
        assert joined.item[joined.user == code].tolist() == history[name]


def test_a_second_delivery_changes_nothing() -> None:
    old, is_early = learner("id"), DOWN.time < np.median(DOWN.time)
    half, rest = (filter_interactions(DOWN, rows) for rows in (is_early, ~is_early))
    so_far = followed_by(UP, half)
    assert followed_by(half, DOWN).dropped[TWICE] == len(half)
    learned, again = old.learn(rest, before=so_far), old.learn(DOWN, before=so_far)
    assert same(weights(again), weights(learned))
    assert again.learned.dropped == {TWICE: len(half)} and not learned.learned.dropped


def test_nobody_to_train_on_leaves_the_weights() -> None:
    old = model("ensemble")
    one = filter_interactions(DOWN, np.arange(len(DOWN)) == 0)
    learned = old.learn(one)
    assert same(weights(old), weights(learned))
    assert not torch.equal(scores(learned.members()["live"]), scores(old.members()["live"]))
    assert old.learn(filter_interactions(DOWN, np.zeros(len(DOWN), dtype=bool))).fitted_until == old.fitted_until


def test_refused_clicks_name_what_is_wrong() -> None:
    other = metarec.datasets.planted(users=60, items=60)
    with pytest.raises(ValueError, match=r"sasrec.*41"):
        Ensemble({"sasrec": learner("id")}, UP).learn(other)
    early = replace(DOWN, time=DOWN.time - 2 * PLANTED_SPLIT)
    with pytest.raises(ValueError, match=r"live.*clicked at -"):
        model("ensemble").learn(early, before=UP)


@pytest.mark.parametrize("kind", ["ids", "adapting", "mml"])
def test_adams_moments_are_kept_if_asked(kind: str, tmp_path: Path) -> None:
    old, how = model(kind), Learning(keep_optimizer=True)
    first = old.learn(UP, how=how)
    metarec.save(first, tmp_path / "model.safetensors")
    again = metarec.load(tmp_path / "model.safetensors")
    second = first.learn(DOWN, before=UP, how=how)
    assert same(weights(again.learn(DOWN, before=UP, how=how)), weights(second))
    assert not same(weights(first.learn(DOWN, before=UP)), weights(second))
    plain = old.learn(UP)
    assert same(weights(plain), weights(first))
    assert "moments" not in vars(plain) and "moments" not in vars(second.learn(DOWN, before=UP))
    larger = first.add_items(metarec.Catalog(Vocabulary(["new"]), {})) if kind == "ids" else first
    metarec.save(larger, tmp_path / "larger.safetensors")
    steps = {name: t for name, t in metarec.load(tmp_path / "larger.safetensors").moments.items() if "step" in name}
    assert steps and all(float(step) > 0 for step in steps.values())


def test_moments_that_are_not_of_the_weights_are_refused(tmp_path: Path) -> None:
    first = learner("id").learn(UP, how=Learning(keep_optimizer=True))
    saved = first.state()
    name = next(name for name in saved.tensors if name.endswith("exp_avg_sq"))
    for bad in (saved.tensors[name] - 1, saved.tensors[name][:1]):
        with pytest.raises(ValueError, match="exp_avg_sq"):
            type(first).from_state(replace(saved, tensors={**saved.tensors, name: bad}), UP.catalog, first.warm)
