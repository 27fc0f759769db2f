"""What clients send and get: the JSON bodies, and their way to jobs and back."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from metarec.data.dataset import Vocabulary
from metarec.service.answering import Answer, Filters, Job
from metarec.service.limits import Limits

Ids = list[str]
_NEAR = 50  # neighbours in the alphabet among which the nearest ids are looked for, on either side
_SHOWN = 60  # characters of an id that an error repeats


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Wanted(_Strict):
    k: int = Field(10, ge=1, description="Length of the list.")
    exclude_seen: bool | None = Field(
        None, description="Leave out what the user has clicked; unset, as the model does."
    )
    allow: Ids | None = Field(None, description="Only these ids.")
    deny: Ids = Field([], description="None of these ids.")


class RecommendRequest(_Wanted):
    """One user."""

    clicks: Ids = Field(description="Ids of what the user clicked, oldest first. [] gives the unadapted ranking.")
    candidates: Ids | None = Field(None, description="Score these ids only.")


class UserClicks(_Strict):
    """One user of several."""

    clicks: Ids = Field(description="Ids of what the user clicked, oldest first.")
    candidates: Ids | None = Field(None, description="Score these ids only, for this user.")


class RecommendUsersRequest(_Wanted):
    """Several users."""

    users: list[UserClicks]


class AddItemsRequest(_Strict):
    """New items with their features."""

    ids: Ids
    vectors: dict[str, dict[str, list[float]]] = Field(description="By modality, by item id; items may be missing.")
    attributes: dict[str, Ids] = Field({}, description="By column, one string per id, e.g. titles.")


class ItemsRequest(_Strict):
    """Items of the catalogue."""

    ids: Ids


class Item(BaseModel):
    """One entry of a list."""

    id: str
    score: float = Field(description="Comparable within one user's list, not between users.")


class RecommendResponse(BaseModel):
    """One user's list, best first."""

    items: list[Item]
    adapted: bool = Field(description="Whether there were clicks enough, two or more, to adapt to.")
    weights: dict[str, float] = Field(description="How much each learner counts for this user.")


class RecommendUsersResponse(BaseModel):
    """A list per user, in the order of the request."""

    users: list[RecommendResponse]


class ItemsResponse(BaseModel):
    """The catalogue after a change."""

    items: int
    removed: int


class HealthResponse(BaseModel):
    """What is being served."""

    status: str
    items: int
    learners: list[str]
    waiting: int
    version: str


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    error: str


class Reader:
    """Turns requests into jobs, refusing what is not known or too much.

    Args:
        items: the vocabulary, as it is now.
        limits: of a request.
    """

    def __init__(self, items: Vocabulary, limits: Limits) -> None:
        self.items, self.limits = items, limits
        self._alphabet = sorted(items.ids)

    def job(self, request: RecommendRequest) -> Job:
        """One user's job.

        Raises:
            ValueError: if an id is not known, or something is more than the limits allow.
        """
        return self._jobs(request, [UserClicks(clicks=request.clicks, candidates=request.candidates)], ("",))[0]

    def jobs(self, request: RecommendUsersRequest) -> list[Job]:
        """The jobs of several users.

        Raises:
            ValueError: as :meth:`job`, or if there is no user.
        """
        if not request.users:
            raise ValueError("users: expected at least one user, got none")
        self.check_size("users", request.users, self.limits.users)
        return self._jobs(request, request.users, [f"users.{i}." for i in range(len(request.users))])

    def check_ids(self, name: str, ids: Collection[str]) -> None:
        """Refuse too many ids, and unknown ones, naming the nearest known.

        Raises:
            ValueError: of either kind.
        """
        self.check_size(name, ids, self.limits.ids)
        unknown = next((i for i in ids if i not in self.items), None)
        if unknown is not None:
            place = bisect(self._alphabet, unknown)
            around = self._alphabet[max(0, place - _NEAR) : place + _NEAR]
            near = difflib.get_close_matches(unknown[:_SHOWN], around, n=3, cutoff=0.5) or around[_NEAR - 1 : _NEAR + 2]
            raise ValueError(
                f"{name}: unknown item id {_short(unknown)}; nearest known ids: {', '.join(map(repr, near))}"
            )

    def _jobs(self, request: _Wanted, users: Sequence[UserClicks], where: Sequence[str]) -> list[Job]:
        if request.k > self.limits.k:
            raise ValueError(f"k: expected at most {self.limits.k}, got {_short(request.k)}")
        for name in ("allow", "deny"):
            self.check_ids(name, getattr(request, name) or ())
        allow = None if request.allow is None else frozenset(request.allow)
        deny, out = frozenset(request.deny), []
        for place, user in zip(where, users, strict=True):
            self.check_size(f"{place}clicks", user.clicks, self.limits.clicks)
            self.check_ids(f"{place}clicks", user.clicks)
            self.check_ids(f"{place}candidates", user.candidates or ())
            candidates = None if user.candidates is None else frozenset(user.candidates)
            filters = Filters(request.exclude_seen, allow, deny, candidates)
            out.append(Job(tuple(user.clicks), request.k, filters))
        return out

    def check_size(self, name: str, what: Collection[Any], most: int) -> None:
        """Refuse too much.

        Raises:
            ValueError: if there is more than ``most``.
        """
        if len(what) > most:
            raise ValueError(f"{name}: expected at most {most}, got {len(what)}")


def body(answer: Answer) -> dict[str, Any]:
    """An answer as JSON says it; the form of :class:`RecommendResponse`."""
    return {
        "items": [{"id": item.id, "score": item.score} for item in answer.items],
        "adapted": answer.adapted,
        "weights": answer.weights,
    }


def _short(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...") if isinstance(value, str) else text[:_SHOWN]
