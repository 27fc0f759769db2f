"""The clicks of users who happened to ask at the same time, answered by one inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from metarec.data.vocabulary import Id
from metarec.functional.fusion import NotFiniteError
from metarec.recommender import Reason, Recommendation, Recommendations, Recommender, Users


@dataclass(frozen=True)
class Filters:
    """Which items a list may hold.

    Attributes:
        exclude_seen: leave out the user's clicks; by default as the recommender does.
        allow: only these ids; None for all.
        deny: none of these ids.
        candidates: score only these ids, for this user; None for the whole catalogue.
        diversity: a weight, or columns and how many items of each category at most.
    """

    exclude_seen: bool | None = None
    allow: frozenset[Id] | None = None
    deny: frozenset[Id] = frozenset()
    candidates: frozenset[Id] | None = None
    diversity: float | tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class Job:
    """One user's question.

    Attributes:
        clicks: external ids in time order.
        k: the length of the list.
        filters: which items it may hold.
        user: in place of clicks, one whose clicks were observed.
        profile: what is known of the user, by column.
        because: how many of the clicks that moved it up are named with each item.
        kinds: those of the events in ``clicks``; None where all are clicks.
    """

    clicks: tuple[Id, ...]
    k: int
    filters: Filters
    user: Id | None = None
    profile: Mapping[str, Any] | None = None
    because: int = 0
    kinds: tuple[str, ...] | None = None

    @property
    def alike(self) -> tuple[Filters, int]:
        """What must be the same of jobs whose lists are made together; what is diversified depends on the length."""
        return self.filters, self.k if self.filters.diversity is not None else 0


@dataclass(frozen=True)
class Answer:
    """One user's list.

    Attributes:
        items: best first; fewer than were asked for where no more are left.
        adapted: whether there was something to learn from.
        weights: how much each learner counts for this user, by name.
        because: for each item the clicks that moved it up most, if they were asked for.
        version: of the weights, in a service that learns.
    """

    items: list[Recommendation]
    adapted: bool
    weights: dict[str, float]
    because: list[list[Reason]] | None = None
    version: int = 0


def answers(recommender: Recommender, jobs: Sequence[Job]) -> list[Answer | ValueError]:
    """The answer to each job, or the error that it would have met alone.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> recommender = Recommender(MML.build(planted(users=60, items=40), MMLConfig(dim=8)))
        >>> good, bad = Job(("item3", "item7"), 5, Filters()), Job(("itm3",), 5, Filters())
        >>> [type(answer).__name__ for answer in answers(recommender, [good, bad])]
        ['Answer', 'ValueError']
    """
    order = sorted(range(len(jobs)), key=lambda i: hash(jobs[i].alike))
    some, named = [i for i in order if jobs[i].user is None], [i for i in order if jobs[i].user is not None]
    out = dict(zip(some, _alike([jobs[i] for i in some], recommender) if some else (), strict=True))
    out |= {i: _named(jobs[i], recommender) for i in named}
    return [out[i] for i in range(len(jobs))]


def _named(job: Job, recommender: Recommender) -> Answer | ValueError:
    """The answer to someone whose clicks were observed."""
    try:
        return _listed([job], recommender.user(cast(Id, job.user)).users)[0]
    except ValueError as error:
        return _alone(error)


def _alike(jobs: Sequence[Job], recommender: Recommender) -> list[Answer | ValueError]:
    """Answers to jobs that are sorted by their filters; halves until the one that fails stands alone."""
    try:
        profiles = [job.profile for job in jobs]
        told: dict[str, Any] = {"profile": profiles} if any(profile is not None for profile in profiles) else {}
        if any(job.kinds is not None for job in jobs):
            told["kinds"] = [job.kinds for job in jobs]
        users = recommender.adapt([job.clicks for job in jobs], **told)
    except ValueError as error:
        if len(jobs) == 1:
            return [_alone(error)]
        half = len(jobs) // 2
        return [*_alike(jobs[:half], recommender), *_alike(jobs[half:], recommender)]
    out: list[Answer | ValueError] = []
    for _, group in groupby(jobs, key=lambda job: job.alike):
        own = list(group)
        out += _listed(own, users if len(own) == len(users) else users[len(out) : len(out) + len(own)])
    return out


def _listed(jobs: Sequence[Job], users: Users) -> list[Answer | ValueError]:
    """Lists of users with the same filters; halves until the one that fails stands alone."""
    filters, names = jobs[0].filters, users.recommender.learners
    candidates = None if filters.candidates is None else [filters.candidates] * len(jobs)
    try:
        lists = users.recommender.rank(
            users,
            max(job.k for job in jobs),
            exclude_seen=filters.exclude_seen,
            allow=filters.allow,
            deny=filters.deny or None,
            candidates=candidates,
            diversity=dict(filters.diversity) if isinstance(filters.diversity, tuple) else filters.diversity,
        )
        reasons = _reasons(jobs, users, lists)
    except ValueError as error:
        if len(jobs) == 1:
            return [_alone(error)]
        half = len(jobs) // 2
        return [*_listed(jobs[:half], users[:half]), *_listed(jobs[half:], users[half:])]
    facts = zip(jobs, lists, users.adapted.tolist(), users.weights.tolist(), reasons, strict=True)
    return [
        Answer(items[: job.k], adapted, dict(zip(names, weights, strict=True)), own)
        for job, items, adapted, weights, own in facts
    ]


def _reasons(jobs: Sequence[Job], users: Users, lists: Recommendations) -> list[list[list[Reason]] | None]:
    """For each job that asks for them, the reasons of each item of its list."""
    out: list[list[list[Reason]] | None] = [None] * len(jobs)
    asking = [n for n, job in enumerate(jobs) if job.because]
    for n in asking:
        length = min(int(lists.counts[n]), jobs[n].k)
        [out[n]] = users.recommender.reasons(users[n : n + 1], lists.codes[n : n + 1, :length], jobs[n].because)
    return out


def _alone(error: ValueError) -> ValueError:
    """The error as told to the only user it is about."""
    return error if isinstance(error, NotFiniteError) else ValueError(str(error).removeprefix("user 0: "))
