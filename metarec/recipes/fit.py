"""One call that chooses and trains for the data at hand.

The upstream side is split once more in time: the users who start last validate, and nothing is trained on them. On the
earlier part counts are made and learners trained for as long as the validation users are served better; each learner
is tried with procedures that adapt it to new users; and the form of the ensemble is chosen by cross-validation over the
validation users, from a single part to weights that depend on the context. What was chosen, and no more, is then fitted
on the whole upstream side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from metarec.data import Dataset, EpisodeSampler
from metarec.files import checksum
from metarec.functional.histories import leaves_out_seen, seen_items
from metarec.recipes.adaptation import best_of
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.components import COMPONENTS, Component, Setup
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.ensemble_form import Choice, choose_form
from metarec.recipes.fit_report import Candidate, FitReport
from metarec.recipes.fit_stages import FitProgress, Stages
from metarec.recipes.fitted_learner import FittedLearner, Validation
from metarec.recipes.nested_validation import at_most, last_clicks, validation_split
from metarec.recipes.profile_popularity import ProfilePopularity, first_click_gain
from metarec.recipes.training import fingerprint
from metarec.types import Method

LEAST_USERS = 30  # who must validate for anything to be chosen
SIMPLE = ("popularity, all", "co-clicks")  # what is taken without
PROFILES = "popularity by profile"
CO_CLICKS = 0.8  # the weight of co-clicks beside popularity there
CLICKS = 3  # last clicks of a validation user that weights are fitted to
FITTED = 2000  # such clicks at most
STOPPING_CLICKS, STOPPING = 3, 1000  # the same of those that say when a training ends
CANDIDATES = 512  # items that a click is compared with
COUNTS_AGAIN = "counts: on everything"
WEIGHTS, COUNTS = 4.0, 1.0  # how much work fitting weights, and counting, is beside other stages


def fit(
    upstream: Dataset,
    *,
    live: Dataset | None = None,
    day: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    budget: float | None = None,
    folder: str | Path | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
) -> Ensemble:
    """A model for the data at hand: chosen by nested temporal validation, trained, ready to evaluate, save and serve.

    Args:
        upstream: the upstream side of a split.
        live: all clicks there are, on both sides of the split, if they may be counted up to each question's time.
        day: how many units of the data's times are a day; by default as :meth:`metarec.Dataset.days` tells.
        seed: of weights and draws.
        device: where it is trained and stays.
        budget: minutes that it may take, about; as long as it pays by default.
        folder: where finished stages are kept; a fit that was stopped goes on from there.
        on_progress: told of every step, with the share of the work that is done and the seconds left.

    Returns:
        An ensemble whose ``report`` says what was tried, chosen and why; print it, or ``plot`` it.

    Raises:
        ValueError: if there is no interaction; if a modality is called ``id`` or has a ``/`` in its name; if live
            clicks are given that are of another catalogue, or nothing says how long a day is; or if the folder is that
            of another fit, or the seed negative.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=80, items=40), at=PLANTED_SPLIT)
        >>> model = fit(up)
        >>> list(model.members()), model.report.notes
        (['popularity, all', 'co-clicks'], ('13 users validate, fewer than 30: co-clicks, and a little popularity',))
    """
    _check(upstream, live)
    times = checksum({"time": torch.from_numpy(upstream.time)}, "")[:16]
    lives = None if live is None else len(live)
    told = (fingerprint(EpisodeSampler(upstream, seed=seed, negatives=0)), times, seed, lives, day, budget)
    key = " ".join(map(str, told))
    stages = Stages(folder, key, budget=budget, on_progress=on_progress)
    setup = Setup(upstream, live=live, day=day, seed=seed, device=device)
    if live is not None:
        setup.days(1)  # said before the training if at all
    try:
        earlier, later = validation_split(upstream)
        users = _validating(later, exclude_seen=leaves_out_seen(upstream.known_repeat_share))
    except ValueError:
        users = 0
    out = _simple(setup, users, stages) if users < LEAST_USERS else _Fit(setup, stages, earlier, later).run()
    stages.end()
    return out


def _check(upstream: Dataset, live: Dataset | None) -> None:
    """Refuse what would break a fit at its end."""
    if not len(upstream):
        raise ValueError(f"fit: expected interactions, got none in {upstream.name}")
    if strange := [name for name in upstream.catalog.modalities if name == "id" or "/" in name]:
        raise ValueError(f"fit: a modality is called {strange[0]!r}; give it a name without '/' that is not 'id'")
    if live is not None and live.catalog.items.texts != upstream.catalog.items.texts:
        raise ValueError(
            f"fit: live= {live.name} has another catalogue ({len(live.catalog.items)} items) than {upstream.name} "
            f"({len(upstream.catalog.items)}); give the data that upstream was split from"
        )


def _validating(later: Dataset, *, exclude_seen: bool) -> int:
    """How many users have a click that can be asked for."""
    users: set[int] = set()
    for batch in last_clicks(later, STOPPING_CLICKS):
        asked = batch.query.weight > 0
        seen = seen_items(batch.query, later.catalog.size) & exclude_seen
        asked &= ~seen.gather(-1, batch.query.target.unsqueeze(-1)).squeeze(-1)
        users |= set(batch.user[asked.any(-1)].tolist())
    return len(users)


def _simple(setup: Setup, users: int, stages: Stages) -> Ensemble:
    """What data bear that nothing can be validated on."""
    names = [*SIMPLE, *(["co-clicks, live"] if setup.live is not None else [])]
    members = {n: m for c in COMPONENTS if c.name in names for n, m in c.members(c.fit(setup)).items()}
    weights = ContextWeights(list(members), context=False)
    with torch.no_grad():
        share = CO_CLICKS / (len(members) - 1)
        weights.weight[0] = torch.tensor([share if "co-clicks" in name else 1 - CO_CLICKS for name in members])
    out = Ensemble(members, setup.data, weights=weights).to(setup.device)
    note = f"{users} users validate, fewer than {LEAST_USERS}: co-clicks, and a little popularity"
    out.report = FitReport(users, (), (0.0, 0.0, 0.0), {}, (note,), stages.elapsed())
    return out


class _Fit:
    """The stages of one fit, on the earlier part, then on the whole."""

    def __init__(self, setup: Setup, stages: Stages, earlier: Dataset, later: Dataset) -> None:
        self.setup, self.stages, self.earlier, self.later = setup, stages, earlier, later
        self.exclude_seen = leaves_out_seen(setup.data.known_repeat_share)
        self.notes: list[str] = []
        self.live: dict[str, Method] = {}
        stopping = [batch.to(setup.device) for batch in at_most(list(last_clicks(later, STOPPING_CLICKS)), STOPPING)]
        # What nobody has clicked upstream could not be clicked yet: it is in no list of the validation users.
        self.items = torch.from_numpy(setup.data.warm).to(setup.device)
        validation = Validation(earlier, stopping, self.items, self.exclude_seen)
        features = sorted(setup.data.catalog.modalities)
        inputs = [("id", *features), *((name,) for name in features)]
        learners = [
            FittedLearner(each, setup, validation, stages, adapts=not place, share=(place + 1) / len(inputs))
            for place, each in enumerate(inputs)
        ]
        self.learners = {learner.name: learner for learner in learners}
        stages.plan({"weights": WEIGHTS, "counts": COUNTS, COUNTS_AGAIN: COUNTS})

    def run(self) -> Ensemble:
        """Choose on the earlier part, fit on the whole."""
        members = self._counts("counts", self.earlier)
        for place, (name, learner) in enumerate(self.learners.items()):
            if place and self.stages.search_is_over(share=0.9):
                self.notes.append(f"{name} was not tried: the budget was spent")
                self.stages.skip(learner.stages_of_search)
            else:
                members[name] = learner.search()
        choice, first = self._choose(members), self._first(members)
        weights = choice.weights if first is None else choice.weights.with_part(first)
        kept = weights.names
        self.stages.skip(learner.last_stage for name, learner in self.learners.items() if name not in kept)
        counts = self._counts(COUNTS_AGAIN, self.setup.data, kept)
        fitted = {name: counts[name] if name in counts else self.learners[name].whole() for name in kept}
        out = Ensemble(fitted, self.setup.data, weights=weights).to(self.setup.device)
        out.first, out.report = first, self._report(choice)
        return out

    def _counts(self, stage: str, data: Dataset, wanted: tuple[str, ...] | None = None) -> dict[str, Method]:
        """The counts of one side; those of live clicks are made once."""
        self.stages.begin(stage)
        setup = dataclasses.replace(self.setup, data=data)
        out: dict[str, Method] = {}
        for component in self._components():
            if wanted is not None and component.name not in wanted:
                continue
            made = {component.name: self.live[component.name]} if component.name in self.live else component.fit(setup)
            if component.group == "live":
                self.live |= made
            out |= made
        self.stages.finish(stage)
        return out

    def _components(self) -> Iterator[Component]:
        groups = ["counts", "more"]
        groups += [] if self.setup.data.profiles is None else ["profiles"]
        groups += [] if self.exclude_seen else ["repeats"]
        groups += [] if self.setup.live is None else ["live"]
        for component in COMPONENTS:
            if component.group in groups and (component.name != "popularity, recent" or self._has_days()):
                yield component

    def _has_days(self) -> bool:
        try:
            self.setup.days(1)
        except ValueError:
            return False
        return True

    def _first(self, members: Mapping[str, Method]) -> str | None:
        """The part that ranks, by profiles, for users without clicks, if first clicks are foreseen better so."""
        part = members.get(PROFILES)
        if not isinstance(part, ProfilePopularity):
            return None
        gain = float(first_click_gain(part, self.later, self.items.cpu()).mean())
        self.notes.append(f"profiles: {gain:+.4f} NDCG@10 of first clicks over popularity")
        return PROFILES if gain > 0 else None

    def _choose(self, members: Mapping[str, Method]) -> Choice:
        self.stages.begin("weights")
        warm = torch.from_numpy(self.earlier.warm).to(self.setup.device)
        clicks = at_most(list(last_clicks(self.later, CLICKS)), FITTED)
        exclude_seen, most = self.exclude_seen, CANDIDATES
        seen = candidate_scores(members, warm, clicks, items=self.items, exclude_seen=exclude_seen, most=most)
        choice = choose_form(seen)
        self.stages.finish("weights")
        return choice

    def _report(self, choice: Choice) -> FitReport:
        kept = choice.weights.names
        forms = [Candidate("ensemble", f.name, f.mean, *f.interval(), f.name == choice.form.name) for f in choice.forms]
        parts = [Candidate("part", p.name, p.mean, *p.interval(), p.name in kept) for p in choice.parts]
        procedures = [
            Candidate("adaptation", f"{name}, {one.procedure}", one.ndcg, *one.interval(), name in kept and one is best)
            for name, learner in self.learners.items()
            for best in (best_of(learner.tried),)
            for one in learner.tried
        ]
        generators = [
            Candidate("generator", f"{name}, with a generator", own.ndcg, *own.interval(), name in kept and own.pays)
            for name, learner in self.learners.items()
            for own in ([] if learner.generator is None else [learner.generator])
        ]
        epochs = {name: learner.epochs for name, learner in self.learners.items() if name in kept}
        users, seconds = len(choice.forms[0].ndcg), self.stages.elapsed()
        tried = (*forms, *parts, *generators, *procedures)
        return FitReport(users, tried, choice.gain(), epochs, tuple(self.notes), seconds)
