"""Chooses the form of an ensemble by cross-validation over users.

From the simplest to the most flexible: the best single part, equal weights, selected weights (see
:mod:`~metarec.recipes.selection`), weights that are the same for everybody, and weights that depend on the user's
context, the last two fitted and shrunk toward the selected ones. The most flexible is taken, unless a simpler one is
better by more than two standard errors of the difference, over users. The one-standard-error rule, which takes the
simplest of those that are not clearly worse, costs more than it saves here: inside the upstream sides of five real data
sets it reached .95 of the best single part in hindsight, shrunk weights by context 1.00.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarec.recipes.candidates import CandidateScores
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.selection import selected_weights
from metarec.recipes.validation import Ranked

FOLDS = 5
ERRORS = 2.0  # standard errors by which a simpler form must be better
PENALTY = 1e-2  # of the squared distance from the selected weights
ITERATIONS = 20  # in a fold: the form is judged as well by weights that are fitted half as long
LEAST = 0.01  # share of all weights below which a part is left out


@dataclass(frozen=True)
class Form:
    """One form of an ensemble.

    Attributes:
        name: for people.
        kind: how the weights are found.
    """

    name: str
    kind: Literal["part", "equal", "selected", "constant", "context"]

    def fit(self, seen: CandidateScores, *, iterations: int = 40) -> ContextWeights:
        """The weights for some clicks, by so many iterations where they are fitted."""
        names = (best_part(seen),) if self.kind == "part" else seen.names
        apart = self.kind in ("constant", "context") and bool(seen.repeat.any())
        weights = ContextWeights(names, context=self.kind == "context", repeats=apart).to(seen.z.device)
        if self.kind in ("part", "equal"):
            weights.until = seen.until
            return weights
        selected = selected_weights(seen)
        if self.kind == "selected":
            weights.until = seen.until
            with torch.no_grad():
                weights.weight[0] = selected
        else:
            weights.fit(seen, toward=selected, penalty=PENALTY, iterations=iterations)
        return weights


FORMS = (
    Form("best single part", "part"),
    Form("equal weights", "equal"),
    Form("selected weights", "selected"),
    Form("constant weights", "constant"),
    Form("weights by context", "context"),
)


@dataclass(frozen=True)
class Validated:
    """What a form, or a single part, reached on users that its weights were not fitted to.

    Attributes:
        name: of the form or the part.
        ndcg: (U,) NDCG@10 by user, float64.
    """

    name: str
    ndcg: Tensor

    @property
    def mean(self) -> float:
        """Over users."""
        return float(self.ndcg.mean())

    def interval(self) -> tuple[float, float]:
        """The mean, two standard errors to either side."""
        error = 2 * float(self.ndcg.std()) / len(self.ndcg) ** 0.5 if len(self.ndcg) > 1 else float("inf")
        return self.mean - error, self.mean + error


@dataclass(frozen=True)
class Choice:
    """The form that was chosen.

    Attributes:
        form: of the ensemble.
        weights: fitted to all clicks.
        forms: what each form reached.
        parts: what each part reached by itself.
    """

    form: Form
    weights: ContextWeights
    forms: tuple[Validated, ...]
    parts: tuple[Validated, ...]

    def gain(self) -> tuple[float, float, float]:
        """What the form reached over the best single part, both cross-validated: mean, two standard errors around."""
        own = next(one for one in self.forms if one.name == self.form.name).ndcg
        gain = own - self.forms[0].ndcg
        mean, error = float(gain.mean()), 2 * float(gain.std()) / len(gain) ** 0.5
        return mean, mean - error, mean + error


def choose_form(seen: CandidateScores, *, folds: int = FOLDS, forms: tuple[Form, ...] = FORMS) -> Choice:
    """Cross-validate every form, and fit the chosen one to all clicks.

    Args:
        seen: of clicks that no part was fitted on.
        folds: parts that the users are divided into.
        forms: from the simplest to the most flexible.

    Raises:
        ValueError: if there are fewer users than folds.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> from metarec.recipes.candidates import candidate_scores
        >>> from metarec.recipes.nested_validation import last_clicks
        >>> up, down = split_by_time(planted(users=100, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> parts = {"ease": EASE(up), "popularity": Popularity(up)}
        >>> seen = candidate_scores(parts, torch.from_numpy(up.warm), last_clicks(down, 1))
        >>> choose_form(seen).form.name
        'weights by context'
    """
    users = seen.user.unique()
    if len(users) < folds:
        raise ValueError(f"choose_form: expected at least {folds} users, got {len(users)}")
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(users)) % folds).to(users.device)
    own = fold[torch.searchsorted(users, seen.user)]
    found = tuple(Validated(form.name, by_user(seen, _held_out(form, seen, own, folds))) for form in forms)
    better = [one for one in found[:-1] if _beats(one, found[-1])] or [found[-1]]
    form = forms[found.index(max(better, key=lambda one: one.mean))]
    parts = tuple(Validated(n, by_user(seen, seen.ndcg(seen.z[:, s]))) for s, n in enumerate(seen.names))
    return Choice(form, _without_idle(form, seen), found, parts)


def _held_out(form: Form, seen: CandidateScores, own: Tensor, folds: int) -> Tensor:
    """(n,) NDCG of each click by weights that were fitted to the users of other folds."""
    out = torch.zeros(len(own), dtype=torch.float64, device=own.device)
    for number in range(folds):
        weights, asked = form.fit(seen.on(own != number), iterations=ITERATIONS), seen.on(own == number).of(seen.names)
        out[own == number] = fused_ndcg(weights, asked)
    return out


@torch.no_grad()
def fused_ndcg(weights: ContextWeights, seen: CandidateScores) -> Tensor:
    """(n,) NDCG of clicks by an ensemble's scores."""
    seen = seen.of(weights.names)
    ndcg: Tensor = seen.ndcg(weights.fuse(seen.z, seen.unknown, seen.context, seen.repeat))
    return ndcg


def by_user(seen: CandidateScores, ndcg: Tensor) -> Tensor:
    """(U,) the means of each user's clicks (n,), users in ascending order of their codes."""
    return Ranked(seen.user, ndcg).by_user()


def best_part(seen: CandidateScores) -> str:
    """The part that ranks the clicks best by itself."""
    reached = [float(by_user(seen, seen.ndcg(seen.z[:, s])).mean()) for s in range(len(seen.names))]
    return seen.names[max(range(len(reached)), key=reached.__getitem__)]


def _beats(one: Validated, other: Validated) -> bool:
    """Whether a form is better by more than ``ERRORS`` standard errors of the difference."""
    gain = one.ndcg - other.ndcg
    return bool(gain.mean() > ERRORS * gain.std() / len(gain) ** 0.5)


def _without_idle(form: Form, seen: CandidateScores) -> ContextWeights:
    """The weights fitted to all clicks, without parts that count for nothing."""
    weights = form.fit(seen)
    if form.kind in ("part", "equal"):
        return weights
    with torch.no_grad():
        means = torch.stack([weights(seen.context)[0].mean(0), weights.of_repeats(seen.context).mean(0)])
    counts = (means > LEAST * means.sum(1, keepdim=True)).any(0).tolist()
    kept = [name for name, counting in zip(weights.names, counts, strict=True) if counting]
    return form.fit(seen.of(kept)) if kept and len(kept) < len(weights.names) else weights
