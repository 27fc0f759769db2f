"""What the compiled encoder takes, what it refuses, and the memory it needs."""

from __future__ import annotations

import pytest
import torch

from helpers import id_learner, ragged_episodes
from maml_loop import KERNEL_LENGTHS as LENGTHS
from maml_loop import LR, STEPS, close
from metarec.meta import MetaLearner, library
from metarec.meta.compiled import CompiledUsers
from metarec.meta.engine import InnerLoop
from metarec.meta.kernel import KernelEncoder
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from optional import needs_kernel

pytestmark = needs_kernel

LOOP = InnerLoop("bpr", steps=1, rate=LR)


def test_a_missing_or_broken_library_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "EXTENSION_SUFFIXES", [".none"])
    assert library.library.__wrapped__() is None
    broken = tmp_path / "_encoder_kernel.so"
    broken.write_bytes(b"not a library")
    assert library._opened(broken) is None
    monkeypatch.setattr(library, "library", lambda: None)
    with pytest.raises(RuntimeError, match=r"was .*installing.* C compiler"):
        library.Pass(torch.zeros(()), {}, (), ())


def test_rows_of_users_who_are_gone_are_used_again_and_others_are_not():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = MetaLearner(learner, lr=LR, steps=STEPS)
    kept = meta.adapt(episodes.support)
    before = kept.weights()
    few = meta.adapt(episodes.support[:2])
    place = few.stacks[0].encoder.row.data_ptr()
    assert place != kept.stacks[0].encoder.row.data_ptr()
    del few
    again = meta.adapt(episodes.support[2:3])
    assert again.stacks[0].encoder.row.data_ptr() == place
    for name, value in kept.weights().items():
        assert torch.equal(value, before[name])
        close(again.weights()[name][0], value[2])


def test_what_it_does_not_take():
    class Own(SequenceEncoder):
        """Perhaps with another forward pass."""

    items = IdItems(12, 8)
    taken = {
        "as it is": SequenceEncoder(8),
        "float64": SequenceEncoder(8).double(),
        "a subclass": Own(8),
        "half": SequenceEncoder(8).bfloat16(),
        "elsewhere": SequenceEncoder(8).to("meta"),
        "two types": SequenceEncoder(8),
        "too wide": SequenceEncoder(1026, layers=1),
        "no blocks": SequenceEncoder(8, layers=0),
    }
    taken["two types"].position.data = taken["two types"].position.data.double()
    views = {name: ModalityLearner(items.frozen(), base) for name, base in taken.items()}
    views["more that adapts"] = ModalityLearner(items, SequenceEncoder(8))
    assert {name for name, view in views.items() if CompiledUsers.fits(view, LOOP, {})} == {"as it is", "float64"}


def test_bad_input_is_refused():
    base, keep = SequenceEncoder(8, max_length=4).double(), torch.ones(2, 4, dtype=torch.bool)
    x, adapted = torch.zeros(2, 5, 8, dtype=torch.float64), KernelEncoder(base, 2)
    with pytest.raises(ValueError, match="history of 5 items, but max_length is 4"):
        adapted(x, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"adapted to 2 .*histories.* 1"):
        adapted(x[:1, :4], keep[:1])
    for position in (-1, 4):
        with pytest.raises(IndexError, match=r"positions .* 0 to 3"):
            adapted(x[:, :4], keep, None, torch.tensor([[0], [position]]))
    stack = CompiledUsers(ModalityLearner(IdItems(12, 8).double().frozen(), base), 1)
    support = ragged_episodes([6]).support
    with pytest.raises(RuntimeError, match=r"may .*encoder"):
        stack.step((stack("loss", support) + stack("loss", support)).sum(), 0.1)


def test_bytes_of_a_user_by_hand():
    learner, support = id_learner(), ragged_episodes([9]).support
    # Padded to 8 (float64): D 8, F 16, 3 D 24. Panels of 8 columns, each with a row more: 9 x 24 + 9 x 8 + 9 x 16 +
    # 17 x 8 weights and 56 biases in a block, 4 norm vectors of 8; 10 positions and 2 norm vectors.
    row = 10 * 8 + 16 + 2 * (216 + 72 + 144 + 136 + 56 + 32)
    # A query reads 8 items. Of each token: x, heads, two norms, the middle, 3 D, 2 F; 2 heads x 8 x 8 weights; 16 sums.
    saved = 8 + 8 * 8 + 2 * (8 * (5 * 8 + 24 + 32) + 2 * 8 * 8 + 16)
    view = learner.task_view("encoder")
    assert CompiledUsers.bytes_per_user(view, support, 1) == 8 * (row + saved)
    room = 8 * (row + saved) * 2
    meta = MetaLearner(learner, lr=LR, steps=1, memory_budget=room)
    assert [stack.users for stack in meta.adapt(ragged_episodes([9] * 5).support).stacks] == [2, 2, 1]
