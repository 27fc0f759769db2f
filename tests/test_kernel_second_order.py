"""Second-order MAML in the compiled kernel: against autograd, learn2learn and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import id_learner, ragged_episodes, text_learner
from maml_loop import LR as LOOP_LR
from maml_loop import STEPS, loop
from metarec.meta import MetaLearner, VmapUsers
from metarec.meta.compiled import CompiledUsers
from metarec.meta.engine import InnerLoop
from metarec.meta.kernel import KernelEncoder
from metarec.meta.library import DESCEND, LEARN, Pass
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch
from optional import needs_kernel, needs_learn2learn

pytestmark = needs_kernel

LR = 0.3
EPISODES = ragged_episodes([9, 3, 5, 6])


def made(dim: int, **shape: int) -> ModalityLearner:
    """A learner of another shape, with weights that bend its losses."""
    torch.manual_seed(dim)
    learner = ModalityLearner(IdItems(12, dim), SequenceEncoder(dim, max_length=10, dropout=0.0, **shape)).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.2 * torch.randn_like(p))
        learner.items.weight[0] = 0  # type: ignore[union-attr,index,operator]
    return learner.eval()


SHAPES: dict[str, Callable[[], ModalityLearner]] = {
    "ids": lambda: id_learner(context=False),
    "ids and context": id_learner,
    "text": text_learner,
    "one block": lambda: made(12, heads=3, feedforward=20, layers=1),
    "odd widths": lambda: made(10, heads=5, feedforward=7, layers=3),
    "wide": lambda: made(64, heads=2, feedforward=96, layers=2),
}


def found(learner: ModalityLearner, part: EpisodeBatch, loop: InnerLoop, engine: type) -> tuple[Tensor, list[Tensor]]:
    trained = list(learner.parameters())
    view = learner.task_view("encoder")
    assert engine is VmapUsers or CompiledUsers.fits(view, loop, {})
    losses, gradients = engine(view, len(part)).query_gradients(part, loop, loop.outer, trained)
    given = zip(trained, gradients, strict=True)
    return losses.detach(), [torch.zeros_like(p) if g is None else g for p, g in given]


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("objective", ["bpr", "sampled_softmax"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_autograd(shape: str, objective: str, steps: int) -> None:
    learner, loop = SHAPES[shape](), InnerLoop(objective, steps, LR, second_order=True, outer="bpr")
    losses, expected = found(learner, EPISODES, loop, VmapUsers)
    ours, gradients = found(learner, EPISODES, loop, CompiledUsers)
    torch.testing.assert_close(ours, losses, rtol=1e-11, atol=1e-12)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dim", [16, 64])  # narrow and wide vectors of the processor
def test_in_float32_the_error_is_that_of_its_numbers(dim: int) -> None:
    wide = made(dim, heads=2, feedforward=2 * dim, layers=2)
    loop = InnerLoop("bpr", 3, LR, second_order=True, outer="bpr")
    _, expected = found(wide, EPISODES, loop, VmapUsers)
    support, query = (replace(e, weight=e.weight.float()) for e in (EPISODES.support, EPISODES.query))
    _, gradients = found(wide.float(), EpisodeBatch(EPISODES.user, support, query), loop, CompiledUsers)
    largest = max(float(theirs.abs().max()) for theirs in expected)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert float((mine - theirs).abs().max()) < 1e-5 * largest


@needs_learn2learn
@pytest.mark.parametrize("make", [id_learner, text_learner])
def test_gradients_are_those_of_learn2learns_loop(make: Callable[[], ModalityLearner]) -> None:
    learner = make()
    _, losses, expected = loop(learner, EPISODES, "encoder", "bpr", True)
    meta = MetaLearner(learner, lr=LOOP_LR, steps=STEPS, second_order=True)
    learner.zero_grad()
    assert meta.backward(EPISODES) == pytest.approx(float(losses.mean()), rel=1e-10)
    for name, p in learner.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-8, atol=1e-12)


def test_with_dropout_the_gradient_is_the_slope_of_the_loss_with_the_same_masks() -> None:
    """Finite differences of the loss, every draw of which begins with the same seed."""
    learner = made(8, heads=2, feedforward=12, layers=2).train()
    for module in learner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.4
    meta = MetaLearner(learner, lr=LR, steps=3, second_order=True, objectives=("sampled_softmax", "bpr"))

    def loss() -> float:
        torch.manual_seed(5)
        return meta.backward(EPISODES)

    loss()
    gradients = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    for name, p in learner.named_parameters():
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
        if name == "items.weight":
            direction[0] = 0
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * 1e-5 * direction)
                values.append(loss())
                p.sub_(sign * 1e-5 * direction)
        slope = float((gradients[name] * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8), name


def test_users_with_a_blind_first_click_and_without_a_query() -> None:
    """Padding in front, an example that weighs nothing: as autograd says."""
    whole = ragged_episodes([10, 3, 5, 6])  # of a length that torch's encoder does not pad
    history, weight = whole.support.history.clone(), whole.query.weight.clone()
    history[1, 0] = weight[2] = 0
    part = EpisodeBatch(whole.user, replace(whole.support, history=history), replace(whole.query, weight=weight))
    learner, how = id_learner(), InnerLoop("bpr", 2, LR, second_order=True, outer="sampled_softmax")
    (_, ours), (_, expected) = (found(learner, part, how, engine) for engine in (CompiledUsers, VmapUsers))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


def test_it_is_taken_for_gradients_alone_by_known_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, learn = [], KernelEncoder.learn
    monkeypatch.setattr(KernelEncoder, "learn", lambda *given: learned.append(given[-1]) or learn(*given))
    for outer, expected in (("bpr", [True]), ("softmax", [])):
        meta = MetaLearner(id_learner(), lr=0.1, steps=2, second_order=True, objectives=("bpr", outer))
        assert [type(stack) for stack in meta.adapt(EPISODES.support).stacks] == [VmapUsers]
        meta.backward(EPISODES)
        assert learned == expected
        learned.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pass_with_one_number_less_is_refused(dtype: torch.dtype) -> None:
    sizes = {"users": 3, "length": 5, "asked": 2, "dim": 6, "heads": 2, "layers": 2, "feedforward": 7, "positions": 6}

    def task(what: int, rows: int, kept: int) -> Pass:
        out = Pass(torch.zeros((), dtype=dtype), {**sizes, "threads": 2}, [0.0] * 3, [1e-5] * 5)
        row, saved = out.sizes()
        floats = {"x": (3, 5, 6), "vectors": (3, 2, 3, 6), "weight": (3, 2), "dvectors": (3, 2, 3, 6), "losses": (3,)}
        floats |= {"moved": (2, rows, row), "saved": (2, kept, saved), "weights": (row,), "dx": (3, 5, 6)}
        out.point(**{name: torch.zeros(shape, dtype=dtype) for name, shape in floats.items()})
        out.point(keep=torch.ones(3, 5, dtype=torch.bool), at=torch.zeros(3, 2, dtype=torch.int64))
        out.set(what=what, steps=2, compared=3, rate=-0.1)
        return out

    def run(*, rows: int = 3, kept: int = 2, second: int = 1, drop: str = "") -> None:
        first, query = task(DESCEND, rows, kept), task(LEARN, 1, 1)
        first.set(second=second)
        if drop:
            first.point(**{drop: None})
        first.followed(query)
        first.run()

    run()
    for wrong, message in (
        ({"rows": 2}, "moved"), ({"kept": 1}, "saved"), ({"second": 2}, "second"), ({"drop": "dvectors"}, "dvectors"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(**wrong)  # type: ignore[arg-type]
    alone = task(DESCEND, 3, 2)
    alone.set(second=1)
    with pytest.raises(ValueError, match="second"):
        alone.run()
