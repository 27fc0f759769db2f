"""Learners by the contract of a model: what is encoded and scored is what each learner says of the catalogue itself."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import id_learner
from learner_worlds import (
    BATCH,
    MODELS,
    SIZE,
    alone,
    close,
    learner,
    maml,
    mml,
    scored,
    shaken,
)
from metarec import MML, ModalityLearner
from metarec.nn import IdItems, SequenceEncoder
from metarec.recipes.anil import HeadLearner
from metarec.recipes.metasgd import MetaSGD
from metarec.scoring import UserState
from metarec.types import Examples
from tiny import UP


@pytest.mark.parametrize("name", MODELS)
def test_states_of_a_batch_score_as_the_adapted_model_does(name: str) -> None:
    model = MODELS[name]()
    expected, state = scored(model, BATCH), model.encode(BATCH.support, BATCH.query)
    users, asked = BATCH.query.target.shape
    assert asked > 1 and len(state) == users * asked
    close(model.scores(state), expected)
    assert torch.equal(state.active, expected.has_known_history.flatten())
    assert torch.equal(model.item_mask(), expected.item_mask)
    assert (model.catalog, model.fitted) == (UP.catalog, model.fitted)
    some = state[torch.tensor([3, 0])]
    close(model.scores(some), replace(expected, scores=expected.scores.flatten(0, 1)[[3, 0]].unsqueeze(1)))


@pytest.mark.parametrize("name", MODELS)
def test_users_encoded_one_by_one_are_those_of_the_batch(name: str) -> None:
    model = MODELS[name]()
    whole, (users, asked) = model.encode(BATCH.support, BATCH.query), BATCH.query.target.shape
    parts = []
    for user in range(users):
        own = alone(user)
        close(model.scores(found := model.encode(own.support, own.query)), scored(model, own))
        parts.append(found)
        few = own.query.target.shape[1]
        rows = whole[user * asked : user * asked + few]
        for tensor in ("state", "scores"):
            if tensor in rows.tensors:
                torch.testing.assert_close(found.tensors[tensor], rows.tensors[tensor], rtol=1e-5, atol=1e-5)
    assert len(UserState.join([*parts, model.encode_empty()])) == sum(map(len, parts)) + 1


@pytest.mark.parametrize("name", MODELS)
def test_mean_and_deviation_are_those_of_the_known_items(name: str) -> None:
    model = MODELS[name]()
    expected = scored(model, BATCH)
    own = expected.scores.flatten(0, 1)[:, expected.item_mask].double()
    mean, deviation = model.scores(model.encode(BATCH.support, BATCH.query)).moments()
    torch.testing.assert_close(mean, own.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, own.std(1, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["SASRec", "MAML, all adapts", "MetaTL", "MML", "MML, all adapts"])
def test_a_user_without_history_is_the_mean_after_one_likely_click(name: str) -> None:
    model, warm = MODELS[name](), np.flatnonzero(UP.warm)
    each, chance = [], torch.zeros(SIZE)
    for code in warm.tolist():
        history, zero = torch.tensor([[code]]), torch.zeros(1, 1, dtype=torch.int64)
        support = Examples(history, zero, zero, zero.unsqueeze(-1), torch.zeros(1, 1))
        each.append(model.encode(support, replace(support, weight=torch.ones(1, 1))))
        parts = [model.meta(n) for n in model.learners] if isinstance(model, MML) else [model]
        for part in parts:
            with torch.no_grad():
                found = part.adapt(support)(support)
            chance += found.scores[0, 0].masked_fill(~found.item_mask, -torch.inf).softmax(0)
    share = chance[torch.from_numpy(warm)]
    kind = "scores" if "scores" in each[0].tensors else "state"
    values = torch.cat([state.tensors[kind] for state in each])
    expected = torch.einsum("n,n...->...", share / share.sum(), values)
    empty = model.encode_empty()
    torch.testing.assert_close(empty.tensors[kind][0], expected, rtol=1e-4, atol=1e-5)
    assert empty.active.all() and len(model.scores(empty)) == 1


@pytest.mark.parametrize(
    "name", ["MAML", "MAML, softmax", "MAML, GRU", "MAML with context", "Meta-SGD", "MML", "MML's part"]
)
def test_steps_go_on_from_the_weights_that_were_kept(name: str) -> None:
    model = MODELS[name]()
    asked = ("position", "target", "weight", "negatives")
    last = replace(BATCH.query, **{n: getattr(BATCH.query, n)[:, :1] for n in asked})
    twice = copy.deepcopy(model)
    if isinstance(model, MML):
        twice.config = replace(model.config, test_steps=2 * model.config.steps("id"))
    else:
        twice.steps = 2 * model.steps
    first = model.encode(BATCH.support, last, keep_weights=True)
    second = model.encode(BATCH.support, last, start=first)
    expected = twice.encode(BATCH.support, last, keep_weights=True)
    for tensor in ("state", "weights"):
        torch.testing.assert_close(second.tensors[tensor], expected.tensors[tensor], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first.tensors["weights"], second.tensors["weights"], atol=1e-3)
    torch.testing.assert_close(first.tensors["state"], model.encode(BATCH.support, last).tensors["state"])


@pytest.mark.parametrize("name", ["SASRec", "own scores", "MAML, all adapts", "ANIL", "MetaTL", "MML, all adapts"])
def test_who_has_no_weights_to_keep_says_so(name: str) -> None:
    model = MODELS[name]()
    with pytest.raises(ValueError, match="keep_weights"):
        model.encode(BATCH.support, BATCH.query, keep_weights=True)


@pytest.mark.parametrize("name", ["SASRec", "MAML", "Meta-SGD", "MML", "MML, all adapts"])
def test_an_answer_that_has_begun_is_not_changed_by_training(name: str) -> None:
    model = MODELS[name]()
    state = model.encode(BATCH.support, BATCH.query)
    scores, bank = model.scores(state), model.bank()
    before = scores.approximate(0, SIZE)
    shaken(model, seed=1)
    torch.testing.assert_close(scores.approximate(0, SIZE), before)
    torch.testing.assert_close(bank.encode(BATCH.support, BATCH.query).tensors["state"], state.tensors["state"])
    assert model.bank() is not bank and model.bank() is model.bank()
    close(model.scores(model.encode(BATCH.support, BATCH.query)), scored(model, BATCH))


@pytest.mark.parametrize(("name", "value"), [("steps", 1), ("lr", 0.5), ("adapts", "all")])
def test_a_change_of_the_steps_is_noticed(name: str, value: float | str) -> None:
    model = maml(learner())
    model.encode(BATCH.support, BATCH.query)
    setattr(model, name, value)
    close(model.scores(model.encode(BATCH.support, BATCH.query)), scored(model, BATCH))


def test_other_settings_are_noticed() -> None:
    model = mml()
    model.encode(BATCH.support, BATCH.query)
    model.config = replace(model.config, test_steps=5)
    close(model.scores(model.encode(BATCH.support, BATCH.query)), scored(model, BATCH))


def test_users_in_chunks_of_their_own_lengths_are_those_of_one_chunk() -> None:
    whole, cut = (maml(learner(), adapts="all", memory_budget=budget) for budget in (None, 1))
    assert len(cut.adapt(BATCH.support).stacks) == len(BATCH.user)
    close(cut.scores(cut.encode(BATCH.support, BATCH.query)), scored(whole, BATCH))


def test_all_queries_of_a_user_keep_the_weights_of_the_user() -> None:
    model = mml()
    kept = model.encode(BATCH.support, BATCH.query, keep_weights=True).tensors["weights"]
    first, second = kept.view(len(BATCH.user), 2, *kept.shape[1:]).unbind(1)
    assert torch.equal(first, second) and not torch.allclose(first[1], first[2])


def test_a_model_in_training_is_encoded_as_evaluated() -> None:
    model = mml()
    expected = scored(model, BATCH)
    model.train()
    close(model.scores(model.encode(BATCH.support, BATCH.query)), expected)
    assert model.training and model.learner("id").items.training


def test_the_size_of_a_state_is_that_of_its_numbers() -> None:
    plain, moving = mml(), mml(test_adapts="all")
    one = alone(1)
    last = one.query.target.shape[1]
    assert plain.encode(one.support, one.query).nbytes == last * 3 * (4 * 8 + 1)
    given = one.support.history, one.support.target, one.support.negatives
    rows = len(set(torch.cat([tensor.flatten() for tensor in given]).tolist()) - {0})
    touched = moving.encode(one.support, one.query)
    assert touched.tensors["rows"].shape == (last, 3, rows) and (touched.tensors["rows"] > 0).all()
    assert plain.encode_empty().nbytes == 3 * (4 * 8 + 1) == moving.encode_empty().nbytes


def test_half_precision_is_served_wide() -> None:
    model = mml()
    expected = model.encode(BATCH.support, BATCH.query)
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = half.encode(BATCH.support, BATCH.query)
    assert found.tensors["state"].dtype == torch.float32
    torch.testing.assert_close(found.tensors["state"], expected.tensors["state"], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["SASRec", "MAML", "MML"])
def test_an_item_vector_that_is_no_number_is_named(name: str) -> None:
    model = MODELS[name]()
    with torch.no_grad():
        parameter = next(p for n, p in model.named_parameters() if p.shape[0] == SIZE)
        parameter[5] = torch.nan
    code = UP.catalog.items.ids[4]
    with pytest.raises(ValueError, match=f"vector of item '{code}'"):
        model.encode(BATCH.support, BATCH.query)


def test_copies_and_parts_know_the_catalogue() -> None:
    model = mml()
    for part in (copy.deepcopy(model), *model.methods().values(), model.training_meta("id")):
        assert part.catalog.items == UP.catalog.items  # type: ignore[union-attr]
        assert list(part.warm) == list(UP.warm) and part.repeat_share == UP.known_repeat_share  # type: ignore[union-attr]
    for wrapped in (HeadLearner(learner()), maml(HeadLearner(learner())), MetaSGD(learner())):
        assert wrapped.catalog is UP.catalog and wrapped.max_length == 50
    assert isinstance(ModalityLearner(IdItems(6, 8), SequenceEncoder(8)).catalog, type(None))


def test_a_view_of_a_learner_knows_its_candidates_without_finding_them_again():
    """Finding them makes a GPU wait, which the capture of a CUDA graph does not allow."""
    own = id_learner()
    for view in (own.task_view("encoder"), own.task_view("all")):
        assert view.candidate_codes() is own.candidate_codes()
        view.candidates = torch.zeros_like(view.candidates)
        assert not len(view.candidate_codes())
    torch.testing.assert_close(own.candidate_codes(), own.candidates.nonzero().squeeze(-1))
