"""Against the released MML code: its weights and inputs give its outputs (fixtures/oracle.npz, float32, dropout 0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.functional import bpr
from metarec.meta import MetaLearner
from metarec.nn import ColdItemGenerator, FeatureItems, IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch, Examples, Modality

ORACLE = {
    name: torch.from_numpy(np.array(a)) for name, a in np.load(Path(__file__).parent / "fixtures/oracle.npz").items()
}
ITEMS, DIM, LENGTH = 40, 16, 10
NAMES = {
    "item_embedding.weight": "items.weight",
    "item_feat": "items.features",
    "position_embedding.weight": "encoder.position",
    "LayerNorm": "encoder.norm",
    "trm_encoder.layer.": "encoder.blocks.",
    "multi_head_attention.LayerNorm": "attention_norm",
    "multi_head_attention.dense": "attention_out",
    "multi_head_attention.": "",
    "feed_forward.LayerNorm": "feedforward_norm",
    "feed_forward.dense_1": "feedforward_in",
    "feed_forward.dense_2": "feedforward_out",
}


def our_name(theirs: str, kind: str) -> str:
    if theirs.startswith("item_projection"):
        return theirs.replace("item_projection", "context.projection" if kind == "id" else "items.projection")
    if theirs.startswith("LayerNorm"):
        return theirs.replace("LayerNorm", "encoder.norm")
    for old, new in NAMES.items():
        if old != "LayerNorm":
            theirs = theirs.replace(old, new)
    return theirs


def group(prefix: str, kind: str) -> dict[str, Tensor]:
    found = {our_name(k.removeprefix(prefix), kind): v for k, v in ORACLE.items() if k.startswith(prefix)}
    assert found
    for name in [n for n in found if ".query." in n]:  # ours is one layer, theirs three
        three = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        found[name.replace("query", "query_key_value")] = torch.cat(three)
    return found


def released(kind: str) -> ModalityLearner:
    features = Modality("f", ORACLE["in/item_features"], torch.ones(ITEMS, dtype=torch.bool))
    encoder = SequenceEncoder(DIM, max_length=LENGTH, layers=2, heads=2, feedforward=32, dropout=0.0)
    if kind == "id":
        learner = ModalityLearner(IdItems(ITEMS, DIM), encoder, context=FeatureItems(features, DIM))
    else:
        learner = ModalityLearner(FeatureItems(features, DIM, train_features=True), encoder)
    weights = group(f"{kind}/weight/", kind)
    missing, unexpected = learner.load_state_dict(weights, strict=False)
    assert not unexpected and not missing
    return learner.eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours.detach().float(), theirs.float(), rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("kind", ["id", "feat"])
def test_states_layers_scores_and_loss(kind):
    learner, history = released(kind), ORACLE["in/item_seq"]
    examples = Examples(
        history,
        ORACLE["in/item_length"].unsqueeze(1) - 1,
        ORACLE["in/pos"].unsqueeze(1),
        ORACLE["in/neg"].reshape(-1, 1, 1),
        torch.ones(len(history), 1),
    )
    scored = learner(examples)
    close(scored.state[:, 0], ORACLE[f"{kind}/out/state"])
    close(scored.scores[:, 0], ORACLE[f"{kind}/out/scores"], 1e-5)
    close(learner.loss(examples).mean(), ORACLE[f"{kind}/out/bpr_loss"])
    context = learner.context(history) if learner.context else None
    layer = learner.encoder(learner.items(history), history > 0, context)
    real = history > 0
    close(layer[real], ORACLE[f"{kind}/out/last_layer"][real])


def test_the_feature_bias_is_not_negligible_in_this_fixture():
    learner, history = released("id"), ORACLE["in/item_seq"]
    x, keep = learner.items(history), history > 0
    with_bias, without = learner.encoder(x, keep, learner.context(history)), learner.encoder(x, keep)
    assert (with_bias - without).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["id", "feat"])
def test_inner_steps_and_first_order_meta_gradient(kind):
    learner = released(kind)
    user, count = ORACLE[f"{kind}/inner/user"], len(ORACLE[f"{kind}/inner/user"])
    support = Examples(
        user[None, : count - 2],
        torch.arange(count - 2)[None],
        user[None, 1:-1],
        ORACLE[f"{kind}/inner/support_neg"].reshape(1, -1, 1),
        torch.ones(1, count - 2),
    )
    query = Examples(
        user[None, :-1],
        torch.tensor([[count - 2]]),
        user[None, -1:],
        ORACLE[f"{kind}/inner/query_neg"].reshape(1, 1, 1),
        torch.ones(1, 1),
    )
    steps, lr = int(ORACLE[f"{kind}/inner/steps"]), float(ORACLE[f"{kind}/inner/lr"])
    meta = MetaLearner(learner, lr=lr, steps=steps)
    losses = [float(meta.adapt(support, steps=n).loss(support).detach()) for n in range(steps)]
    np.testing.assert_allclose(losses, ORACLE[f"{kind}/inner/support_losses"], rtol=1e-5)

    adapted = meta.adapt(support).weights()
    start = dict(learner.named_parameters())
    for name, theirs in group(f"{kind}/inner/adapted/", kind).items():
        close((adapted[name][0] - start[name]), theirs - start[name].detach(), 1e-6)

    loss = meta.query_loss(EpisodeBatch(torch.tensor([1]), support, query)).mean()
    close(loss, ORACLE[f"{kind}/inner/query_loss"])
    loss.backward()
    for name, theirs in group(f"{kind}/inner/query_grad/", kind).items():
        ours = dict(learner.named_parameters())[name].grad
        if name == "items.features":  # the released table of features has no padding row
            ours, theirs = ours[1:], theirs[1:]
        close(ours, theirs, 1e-6)


def test_generated_vectors():
    features, present = ORACLE["in/item_features"], torch.ones(ITEMS, dtype=torch.bool)
    warm = torch.arange(ITEMS) > 0
    generator = ColdItemGenerator(
        IdItems(ITEMS, DIM), [Modality("f", features, present)], warm, dim=DIM, neighbours=4, variant="paper"
    )
    for ours, theirs in (("projections.0", "proj"), ("attentions.0", "attention")):
        for part in ("weight", "bias"):
            generator.get_parameter(f"{ours}.{part}").data = ORACLE[f"generator/weight/{theirs}.{part}"]
    assert torch.equal(generator.neighbours[1:].sort(1).values, ORACLE["generator/neighbours"][1:].sort(1).values)
    generator.neighbours = ORACLE["generator/neighbours"]
    close(generator.generated()[ORACLE["generator/items"]], ORACLE["generator/out"])


def test_bpr_loss():
    close(bpr(ORACLE["bpr/pos"], ORACLE["bpr/neg"].unsqueeze(-1)).mean(), ORACLE["bpr/loss"])
