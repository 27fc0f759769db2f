"""What is looked at before an encoder is run by anything but its own code, and what serving then does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metarec as mr
from helpers import DIM, id_learner
from metarec.data.histories import Clicks
from metarec.data.support import SupportMaker
from metarec.meta import MetaLearner, compiled
from metarec.meta.compiled_user import kind_of
from metarec.meta.inspection import as_built, self_contained, separate
from metarec.meta.library import library
from metarec.nn import ModalityLearner
from tiny import UP

CHANGES = {
    "forward of the object": lambda e: e.norm.__dict__.update(forward=lambda x: x),
    "forward of the class": lambda e: setattr(e.blocks[0], "__class__", type("EncoderBlock", (type(e.blocks[0]),), {})),
    "hook": lambda e: e.blocks[0].register_forward_hook(lambda m, i, o: 2 * o),
    "gradient hook": lambda e: e.position.register_hook(lambda g: g),
    "accumulation hook": lambda e: e.position.register_post_accumulate_grad_hook(lambda p: None),
    "frozen": lambda e: e.position.requires_grad_(False),
    "tied": lambda e: setattr(e.blocks[0].attention_out, "bias", e.blocks[0].feedforward_out.bias),
    "attribute": lambda e: setattr(e.blocks[1], "extra_repr", 2),
    "heads of one block": lambda e: setattr(e.blocks[1], "heads", 4),
    "heads that do not divide": lambda e: setattr(e.blocks[0], "heads", 3),
    "no heads": lambda e: setattr(e.blocks[0], "heads", 0),
    "attention": lambda e: setattr(e.blocks[0], "attend", lambda *given: given),
    "part more": lambda e: setattr(e, "more", nn.Identity()),
    "part less": lambda e: e.blocks.__delitem__(1),
    "order": lambda e: e._modules.update(norm=e._modules.pop("norm")),
    "mode of one part": lambda e: e.blocks[0].dropout.train(not e.training),
    "wide": lambda e: setattr(e, "position", nn.Parameter(torch.zeros(10, DIM + 1, dtype=torch.float64))),
    "parameter of a kind": lambda e: setattr(e, "position", type("P", (nn.Parameter,), {})(e.position.detach())),
    "in place": lambda e: setattr(e.dropout, "inplace", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_encoder_is_seen(change):
    encoder = id_learner().encoder
    assert as_built(encoder) and separate(encoder)
    CHANGES[change](encoder)
    if change == "part less":  # that is an encoder of one block
        assert as_built(encoder) and len(encoder.blocks) == 1
    else:
        assert not (as_built(encoder) and separate(encoder))
    assert compiled.computes(encoder) == (change == "part less" and library() is not None)


def test_code_that_was_exchanged_in_a_class_or_for_all_modules_is_seen(monkeypatch):
    encoder = id_learner().encoder
    with monkeypatch.context() as patch:
        patch.setattr(nn.LayerNorm, "forward", lambda self, x: x)
        assert not as_built(encoder)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        assert not separate(encoder) and not self_contained(encoder)
    finally:
        handle.remove()
    assert as_built(encoder) and separate(encoder) and self_contained(encoder)


def test_learners_that_differ_are_not_served_as_one():
    def metas(change):
        made = [id_learner(seed=seed, context=False) for seed in (0, 1)]
        change(made[1].encoder)
        return [MetaLearner(learner, lr=0.1, steps=2, engine="native").eval() for learner in made]

    changes = {
        "none": lambda e: None,
        "heads": lambda e: [setattr(block, "heads", 4) for block in e.blocks],
        "eps": lambda e: setattr(e.norm, "eps", 0.1),
        "scale": lambda e: setattr(e, "context_scale", 0.7),
        "hook": lambda e: e.norm.register_forward_hook(lambda m, i, o: 2 * o),
        "bias": lambda e: setattr(e.blocks[0], "attention_out", nn.Linear(DIM, DIM, bias=False).double()),
        "frozen": lambda e: e.norm.requires_grad_(False),
    }
    kinds = {name: [kind_of(meta) for meta in metas(change)] for name, change in changes.items()}
    one, other = kinds.pop("none")
    assert one == other and (one is not None) == (library() is not None)
    assert all(one != other for one, other in kinds.values()) or library() is None


def test_serving_computes_what_altered_encoders_and_learners_compute():
    def check(change):
        model = mr.MML.build(UP, mr.MMLConfig(dim=DIM, layers=1, modalities=())).eval()
        change(model)
        found = mr.Recommender(model).adapt(["item3", "item5"]).scores
        codes = UP.catalog.items.encode(["item3", "item5"])
        support, query = SupportMaker(UP.warm, 1, 50)(Clicks.join([codes]))
        with torch.no_grad():
            expected = model.adapt(support)(query).scores[0, 0]
        known = model.item_mask()
        torch.testing.assert_close(found[known], expected[known], rtol=1e-4, atol=1e-4)
        return found

    def forward(model):
        layer = model.learner("id").encoder.blocks[0].attention_out
        layer.forward = lambda x: F.linear(torch.sin(x), layer.weight)

    def hook(model):
        norm = model.learner("id").encoder.norm
        model.learner("id").encoder.register_forward_hook(lambda m, i, o: o * norm.weight)

    class Other(ModalityLearner):
        """Perhaps with other scores."""

    scores = [check(change) for change in (lambda model: None, forward, hook)]
    assert not torch.allclose(scores[0], scores[1], atol=1e-3) and not torch.allclose(scores[0], scores[2], atol=1e-3)
    check(lambda model: setattr(model.learners["id"], "__class__", Other))  # by what its own methods say
    check(lambda model: model.learner("id").encoder.norm.register_forward_hook(lambda m, i, o: 0.5 * o))
