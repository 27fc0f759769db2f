"""Former names work for one release, and say which one is new."""

from collections.abc import Callable

import pytest
import torch

from metarec.recipes import MML, Blend, Ensemble, paying_steps, select_inner_steps, with_inner_steps, with_steps
from metarec.recipes.blend import observe
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
