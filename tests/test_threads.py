"""One Recommender, many threads: each answer is what one thread is told, while items come and go."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from metarec.evaluation import evaluating
from metarec.meta.library import library
from metarec.recommender import Recommender
from tiny import UP

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODES = (
    "encoder",
    "encoder, not compiled",
    "encoder, weights kept",
    "encoder, weights kept, not compiled",
    "encoder, softmax",
    "encoder, softmax, not compiled",
    "encoder, a share for new items",
    "all",
    "all, not compiled",
    "all, softmax",
    "served, a blend",
)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import threads

    monkeypatch.setattr(threads, "DIFFERENT", 12)
    monkeypatch.setattr(threads, "STAGES", 4)
    return threads


def test_every_mode_is_tried(threads: ModuleType) -> None:
    assert tuple(threads.MODES) == MODES


@pytest.mark.parametrize("mode", MODES)
def test_sixteen_threads_are_told_what_one_is(threads: ModuleType, mode: str) -> None:
    found = threads.measure(threads.MODES[mode], asks=40, threads=16)
    assert found == {"asks": 40, "stages": 4, "wrong": 0, "errors": 0}


def test_without_the_kernel_means_without(threads: ModuleType) -> None:
    from metarec.meta import compiled

    with threads._kernel(allowed=False):
        assert compiled.library() is None
    assert compiled.library is library


def test_answers_of_another_model_are_counted_as_wrong(threads: ModuleType, tmp_path: Path) -> None:
    questions = [threads.Question(number, False, tmp_path) for number in range(4)]
    expected = threads.alone(Recommender(threads.lively(UP)), questions)
    other = Recommender(threads.lively(UP, test_adapts="all"))
    race = threads.Race(other, questions, expected, asks=12)
    race.run(2)
    assert (race.wrong, race.errors) == (12, 0)
    other = Recommender(threads.lively(UP))
    other.adapt = None  # type: ignore[assignment,method-assign]
    race = threads.Race(other, questions, expected, asks=12)
    race.run(2)
    assert (race.wrong, race.errors) == (0, 12)


def test_a_module_stays_in_evaluation_mode_until_the_last_is_done() -> None:
    inner = nn.Dropout()
    outer = nn.Sequential(nn.Linear(2, 2), inner)
    outer[0].eval()
    first, second = evaluating(outer), evaluating(inner)  # type: ignore[arg-type]
    first.__enter__()
    second.__enter__()
    assert not any(part.training for part in outer.modules())
    first.__exit__(None, None, None)
    assert outer.training and not inner.training, "somebody evaluates the inner one still"
    assert torch.equal(inner(torch.ones(3)), torch.ones(3))
    second.__exit__(None, None, None)
    assert [part.training for part in outer.modules()] == [True, False, True]
