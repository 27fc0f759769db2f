"""Former names work for one release, and say which one is new."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import id_learner, ragged_episodes
from metarec.data import Catalog, Vocabulary
from metarec.meta import MetaLearner
from metarec.nn import ModalityLearner
from metarec.recipes import MML, Blend, Ensemble, paying_steps, select_inner_steps, with_inner_steps, with_steps
from metarec.recipes.blend import observe
from metarec.types import Examples, Scored
from score_tables import WARM, random_weights, tables, users
from tiny import CONFIG, DOWN, UP


@pytest.mark.parametrize(
    ("old", "new"), [(paying_steps, select_inner_steps), (lambda model, _: with_steps(model, 1).config, None)]
)
def test_functions(old: Callable[..., object], new: Callable[..., object] | None) -> None:
    model = MML.build(UP, CONFIG)
    name = "with_inner_steps" if new is None else "select_inner_steps"
    with pytest.warns(DeprecationWarning, match=name):
        found = old(model, DOWN)
    assert found == (with_inner_steps(model, 1).config if new is None else new(model, DOWN))


def test_a_catalogue_is_grown_by_add_items() -> None:
    added = Catalog(Vocabulary(["new"]))
    with pytest.warns(DeprecationWarning, match="add_items"):
        grown = UP.catalog.grown(added)
    assert grown.items.ids == UP.catalog.add_items(added).items.ids


@pytest.mark.parametrize(("old", "new"), [("known", "item_mask"), ("active", "has_known_history")])
def test_scored_by_the_former_names_read_and_given(old: str, new: str) -> None:
    mask, active = torch.tensor([False, True, True]), torch.tensor([True, False])
    scored = Scored(torch.zeros(2, 3), torch.zeros(2, 4), mask, active)
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(scored, old) is {"known": mask, "active": active}[old]
    with pytest.warns(DeprecationWarning, match=new):
        other = dataclasses.replace(scored, **{old: torch.ones(2, dtype=torch.bool)})
    assert getattr(other, new).tolist() == [True, True]
    given = {"item_mask": mask, "has_known_history": active}
    given[old] = given.pop(new)
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(Scored(torch.zeros(2, 3), torch.zeros(2, 4), **given), new) is given[old]


BATCH = ragged_episodes([4, 6])


@pytest.mark.parametrize("of", [id_learner, lambda: MetaLearner(id_learner(), steps=1).adapt(BATCH.support)])
def test_methods_of_learners_and_of_adapted_users(of: Callable[[], Any]) -> None:
    learner = of()
    for old, new in (("rank", "score"), ("stand", "encode_queries")):
        with pytest.warns(DeprecationWarning, match=new):
            found = getattr(learner, old)(BATCH.query)
        assert all(map(torch.equal, found, getattr(learner, new)(BATCH.query)))


def test_learners_that_override_the_former_names_are_trained_by_them() -> None:
    with pytest.warns(DeprecationWarning, match=r"Twice.rank"):

        class Twice(ModalityLearner):
            def rank(self, examples: Examples) -> Any:
                scores, *others = super().rank(examples)
                return 2 * scores, *others

    plain = id_learner()
    twice = Twice(plain.items, plain.encoder, context=plain.context).eval()
    with pytest.warns(DeprecationWarning, match="score"):
        found = MetaLearner(twice, steps=0).adapt(BATCH.support)(BATCH.query)
    torch.testing.assert_close(found.scores, 2 * plain(BATCH.query).scores)


def test_a_learner_of_ones_own_with_the_former_names_is_adapted() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = id_learner()
            self.items = self.inner.items

        def loss(self, examples: Examples, objective: Any) -> Tensor:
            return self.inner.loss(examples, objective)

        def rank(self, examples: Examples) -> Any:
            return self.inner.score(examples)

        def stand(self, examples: Examples) -> Any:
            return self.inner.encode_queries(examples)

        def task_view(self, adapts: Any) -> nn.Module:
            out = copy.copy(self)
            out._modules = {"inner": self.inner.task_view(adapts)}
            vars(out)["items"] = self.items
            return out

    with pytest.warns(DeprecationWarning, match=r"Own\.(rank|stand)"):
        meta = MetaLearner(Own(), steps=2)
    expected = MetaLearner(id_learner(), steps=2).adapt(BATCH.support)(BATCH.query)
    torch.testing.assert_close(meta.adapt(BATCH.support)(BATCH.query).scores, expected.scores)


@pytest.mark.parametrize("context", [True, False])
def test_a_blend_is_an_ensemble(context: bool) -> None:
    with pytest.warns(DeprecationWarning, match="Ensemble"):
        one, two = (Blend(dict(tables()), WARM, context=context) for _ in range(2))
    weights, batch = random_weights(context=context), users(9)
    with torch.no_grad():
        one.weight.copy_(weights.weight), one.unknown.copy_(weights.unknown), one.usual.copy_(weights.usual)
    same = Ensemble(tables(), weights=weights)
    same.warm = WARM.numpy()
    expected = same.adapt(batch.support)(batch.query).scores
    assert list(one.methods) == ["a", "b", "c"] and one.information == "later"
    assert torch.equal(one.adapt(batch.support)(batch.query).scores, expected)
    assert torch.equal(one.features(one.context(batch.query)), weights.features(one.context(batch.query)))
    two.take_weights(one)
    assert torch.equal(two.weight, one.weight) and two.weight is not one.weight
    with pytest.warns(DeprecationWarning, match="candidate_scores"):
        seen = observe(one.methods, WARM, [users(50)], exclude_seen=False)
    for found in (two, same.weights):
        found.fit(seen, iterations=3)
    assert torch.equal(two.weight, same.weights.weight) and not torch.equal(two.weight, one.weight)
    with (
        pytest.warns(DeprecationWarning, match="Ensemble"),
        pytest.raises(ValueError, match=r"\['d'\]"),
    ):
        Blend({"d": tables()["a"]}, WARM).take_weights(one)
    with pytest.warns(DeprecationWarning, match="Ensemble"), pytest.raises(ValueError, match="Blend: "):
        Blend({}, WARM)
