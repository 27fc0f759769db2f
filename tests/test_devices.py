"""New tensors stand beside the given ones whatever the default device: here one that cannot be mixed with the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import ITEMS, id_learner, ragged_episodes, text_learner
from metarec.functional import causal_attention, nearest_items, ranks, segment_mean
from metarec.functional.histories import readable, seen_items
from metarec.meta import MetaLearner, compiled

SUPPORT = ragged_episodes([5, 9, 4]).support
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
KEEP = torch.tensor([True, True, True, True, False])
FUNCTIONS: dict[str, Callable[[], Tensor]] = {
    "causal_attention": lambda: causal_attention(X, X, KEEP),
    "nearest_items": lambda: nearest_items(X, KEEP, 7, chunk=2),
    "nearest_items among none": lambda: nearest_items(X, ~KEEP & KEEP, 2),
    "ranks": lambda: ranks(X, KEEP.long()),
    "readable": lambda: readable(SUPPORT),
    "seen_items": lambda: seen_items(SUPPORT, ITEMS),
    "segment_mean": lambda: segment_mean(X, KEEP.long(), 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_stays_on_the_device_of_what_it_is_given(name):
    expected = FUNCTIONS[name]()
    with torch.device("meta"):
        found = FUNCTIONS[name]()
    assert torch.equal(found, expected) and found.dtype == expected.dtype


@pytest.mark.parametrize("adapts", ["encoder", "all"])
@pytest.mark.parametrize("make", [id_learner, text_learner])
def test_the_inner_loop_stays_on_the_device_of_the_learner(make, adapts, monkeypatch):
    monkeypatch.setattr(compiled, "library", lambda: None)
    meta = MetaLearner(make(), lr=0.05, steps=2, adapts=adapts)
    expected = meta.adapt(SUPPORT)(SUPPORT).scores
    with torch.device("meta"):
        found = meta.adapt(SUPPORT)(SUPPORT).scores
    assert torch.equal(found, expected)
