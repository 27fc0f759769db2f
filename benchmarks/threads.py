"""One Recommender asked by many threads while its catalogue changes, against what one thread is told.

Usage::

    python benchmarks/threads.py --asks 10000 --threads 16 --out threads.json

Before the threads start, one thread asks everything at every stage of the catalogue. An answer of a thread is right if
it is one of those that belong to the stages between the beginning and the end of the question. Threads adapt to one
user and to many, update, save and load users, and save the whole; another one adds, removes and restores items. Where
somebody without clicks stands depends on the items there are; for them, all pairs of a stage at which they are adapted
to and a later one at which they get their list are asked beforehand.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import add_numbers, command_line, stamp
from tqdm import tqdm

import metarec as mr
from metarec.files import write_json
from metarec.meta.library import library
from metarec.model import Model
from metarec.types import Method

K = 8
DIFFERENT = 24  # questions
TOLERANCE = 1e-5
SWITCH = 1e-4  # seconds after which Python lets another thread go on, so that they meet in many places
STAGES = 7  # of the catalogue

Lists = list[list[mr.recommender.Recommendation]]
Expected = list[tuple[int, int, Lists]]  # at which stages users are adapted to and get their lists, and these


@dataclass(frozen=True)
class Mode:
    """A way to serve.

    Attributes:
        model: makes what is served from the upstream side of a split.
        keep_weights: whether users keep theirs.
        compiled: whether the kernel may be used.
        new_share: of the recommender.
    """

    model: Callable[[mr.Dataset], Model]
    keep_weights: bool = False
    compiled: bool = True
    new_share: float | None = None

    def recommender(self, model: Model) -> mr.Recommender:
        """One that serves the model in this way."""
        return mr.Recommender(model, new_share=self.new_share)


def lively(upstream: mr.Dataset, **settings: Any) -> mr.MML:
    """An untrained model with weights large enough to matter."""
    model = mr.MML.build(upstream, mr.MMLConfig(dim=8, layers=1, inner_steps=2, inner_lr=0.2, **settings)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def blended(upstream: mr.Dataset) -> Model:
    """An ensemble of methods of several kinds, one of them in training mode and with dropout."""
    methods: dict[str, Method] = {
        "ease": mr.recipes.EASE(upstream),
        "text": lively(upstream).meta("text").train(),
        "all": lively(upstream, test_adapts="all").train(),
    }
    return mr.as_model(mr.recipes.Ensemble(methods, upstream), upstream)


SOFTMAX = {"objectives": ("softmax", "softmax")}
MODES = {
    "encoder": Mode(lively),
    "encoder, not compiled": Mode(lively, compiled=False),
    "encoder, weights kept": Mode(lively, keep_weights=True),
    "encoder, weights kept, not compiled": Mode(lively, keep_weights=True, compiled=False),
    "encoder, softmax": Mode(lambda up: lively(up, **SOFTMAX)),
    "encoder, softmax, not compiled": Mode(lambda up: lively(up, **SOFTMAX), compiled=False),
    "encoder, a share for new items": Mode(lively, new_share=0.3),
    "all": Mode(lambda up: lively(up, test_adapts="all")),
    "all, not compiled": Mode(lambda up: lively(up, test_adapts="all"), compiled=False),
    "all, softmax": Mode(lambda up: lively(up, test_adapts="all", **SOFTMAX)),
    "served, a blend": Mode(blended),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, ask, write the JSON, print a summary."""
    parser = command_line(__doc__)
    add_numbers(parser, {"asks": (10_000, "questions, of all modes together"), "threads": (16, "that ask")})
    parser.add_argument("--out", type=Path, default=Path("threads.json"), help="the JSON")
    options = parser.parse_args(arguments)
    modes = {}
    for name in tqdm(MODES, unit="mode"):
        modes[name] = measure(MODES[name], -(-options.asks // len(MODES)), options.threads)
    total = {key: sum(found[key] for found in modes.values()) for key in ("asks", "wrong", "errors")}
    result = {**total, "threads": options.threads, "modes": modes, **stamp(torch.device("cpu"))}
    write_json(options.out, result)
    print(*(f"{count} {key}" for key, count in total.items()), f"written to {options.out}", sep=", ")


def measure(mode: Mode, asks: int, threads: int) -> dict[str, int]:
    """Ask in one mode.

    Returns:
        how many ``asks`` there were, at how many ``stages``, and how many answers were ``wrong`` or ``errors``.
    """
    upstream, _ = mr.split_by_time(mr.datasets.planted(users=60, items=40), at=mr.datasets.PLANTED_SPLIT)
    with tempfile.TemporaryDirectory() as folder, _kernel(allowed=mode.compiled), _often():
        model = mode.model(upstream)
        questions = [Question(number, mode.keep_weights, Path(folder)) for number in range(DIFFERENT)]
        expected = alone(mode.recommender(model), questions)
        race = Race(mode.recommender(model), questions, expected, asks)
        race.run(threads)
    return {"asks": asks, "stages": len(race.begun), "wrong": race.wrong, "errors": race.errors}


def alone(recommender: mr.Recommender, questions: Sequence[Question]) -> list[Expected]:
    """What one thread is told, question by question."""
    expected: list[Expected] = [[] for _ in questions]
    before: list[list[mr.recommender.Users]] = [[] for _ in questions]
    for stage in range(STAGES):
        change(recommender, stage)
        for own, question, users in zip(expected, questions, before, strict=True):
            users.append(question.users(recommender, 0))
            first = 0 if [] in question.histories else stage
            own += [(begun, stage, list(users[begun].recommend(K))) for begun in range(first, stage + 1)]
    return expected


def change(recommender: mr.Recommender, stage: int) -> None:
    """Bring the catalogue to its next stage."""
    if not stage:
        return
    if stage % 3 == 1 and isinstance(recommender.model, mr.MML):
        rows = {name: modality.features[stage : stage + 1] for name, modality in recommender.catalog.modalities.items()}
        recommender.add_items([f"new{stage}"], rows)
    elif stage % 3 == 2:
        recommender.remove_items([f"item{number}" for number in range(stage, 40, 7)])
    else:
        recommender.restore_items([f"item{number}" for number in range(stage - 1, 40, 11)])


class Question:
    """What is asked of a recommender, the same every time."""

    def __init__(self, number: int, keep_weights: bool, folder: Path) -> None:
        draw = random.Random(number)
        users = 1 if number % 8 else 9
        self.histories = [[f"item{draw.randrange(40)}" for _ in range(draw.randint(2, 9))] for _ in range(users)]
        self.histories[0] = self.histories[0] if number % 16 else []
        self.number, self.keep_weights, self.folder = number, keep_weights, folder

    def users(self, recommender: mr.Recommender, thread: int) -> mr.recommender.Users:
        """The users that it is about.

        Args:
            recommender: adapts to them.
            thread: in whose files something is saved.
        """
        path, turn = self.folder / f"{thread}.safetensors", self.number % 8
        saves = isinstance(recommender.model, mr.MML)
        if turn == 1 and self.number % 3 == 0 and saves:
            recommender.save(path)
            recommender = mr.Recommender.load(path)
        clicked = [own[:2] for own in self.histories] if turn == 2 else self.histories
        users = recommender.adapt(clicked, keep_weights=self.keep_weights)
        if turn == 2:
            users = users.update([own[2:] for own in self.histories])
        if turn == 3 and saves:
            users.save(path)
            users = recommender.load_users(path)
        return users


class Race:
    """Threads that ask, and one that changes the catalogue."""

    def __init__(
        self,
        recommender: mr.Recommender,
        questions: Sequence[Question],
        expected: Sequence[Expected],
        asks: int,
    ) -> None:
        self.recommender, self.questions, self.expected, self.asks = recommender, questions, expected, asks
        self.begun, self.done = [0], [0]  # stages of the catalogue
        self.given = iter(range(asks))
        self.answered = self.wrong = self.errors = 0
        self.lock = threading.Lock()

    def run(self, threads: int) -> None:
        """Until all is asked."""
        work = [threading.Thread(target=self._ask, args=(1 + number,)) for number in range(threads)]
        work.append(threading.Thread(target=self._change))
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()

    def _ask(self, thread: int) -> None:
        draw = random.Random(thread)
        while True:
            with self.lock:
                if next(self.given, None) is None:
                    return
            number, first = draw.randrange(len(self.questions)), self.done[-1]
            wrong = error = False
            try:
                found = list(self.questions[number].users(self.recommender, thread).recommend(K))
                last = self.begun[-1]
                right = [lists for begun, stage, lists in self.expected[number] if first <= begun and stage <= last]
                wrong = not any(same(found, lists) for lists in right)
            except Exception:
                error = True
            with self.lock:
                self.answered += 1
                self.wrong += wrong
                self.errors += error

    def _change(self) -> None:
        for stage in range(1, STAGES):
            while self.answered < self.asks * stage // STAGES:
                threading.Event().wait(1e-4)
            self.begun.append(stage)
            try:
                change(self.recommender, stage)
            except Exception:
                with self.lock:
                    self.errors += 1
            self.done.append(stage)


def same(found: Lists, expected: Lists) -> bool:
    """Whether lists have the same items and scores, up to rounding."""
    return [[item.id for item in own] for own in found] == [[item.id for item in own] for own in expected] and all(
        np.allclose([item.score for item in a], [item.score for item in b], atol=TOLERANCE)
        for a, b in zip(found, expected, strict=True)
    )


@contextmanager
def _kernel(*, allowed: bool) -> Iterator[None]:
    """As if the kernel had not been built, if it is not allowed."""
    users = [m for n, m in list(sys.modules.items()) if n.startswith("metarec.") and vars(m).get("library") is library]
    for module in () if allowed else users:
        vars(module)["library"] = lambda: None
    try:
        yield
    finally:
        for module in users:
            vars(module)["library"] = library


@contextmanager
def _often() -> Iterator[None]:
    """Threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


if __name__ == "__main__":
    main()
