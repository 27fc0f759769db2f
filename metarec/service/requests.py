"""What clients send and get: the JSON bodies, and their way to jobs and back."""

from __future__ import annotations

import difflib
import json
import re
from bisect import bisect
from collections.abc import Collection, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from metarec.data.dataset import Vocabulary
from metarec.functional.text import printable
from metarec.service.answering import Answer, Filters, Job
from metarec.service.limits import Limits

T = TypeVar("T")
_NEAR = 50  # neighbours in the alphabet among which the nearest ids are looked for, on either side
_SHOWN = 60  # characters of an id that an error repeats
_ID = 256  # characters of a new id
_TEXT = 10_000  # characters of a new attribute
_UNCLEAN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line ends, lone surrogates


def _entry_by_entry(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a dict up to its first fault, as ``fail_fast`` does for lists."""
    if not isinstance(value, dict):
        return check(value)
    out: dict[str, Any] = {}
    for name, part in value.items():
        out.update(check({name: part}))
    return out


def _new_id(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("id", "Input should be an id, got nothing or blanks")
    if text != text.strip():
        raise PydanticCustomError("id", "Input should be an id without blanks around it")
    return _clean(text, _ID)


def _new_text(text: str) -> str:
    return _clean(text, _TEXT)


def _clean(text: str, most: int) -> str:
    """A text that is kept, and comes back in the answers to others."""
    if len(text) > most:
        raise PydanticCustomError("long", f"Input should have at most {most} characters, got {len(text)}")
    if _UNCLEAN.search(text):
        raise PydanticCustomError("text", "Input should have no control characters and no lone surrogates")
    return text


# A hostile body has as many faults as bytes; making an error of each takes seconds. The first one says enough.
_FIRST = Field(fail_fast=True)
Ids = Annotated[list[str], _FIRST]
NewIds = Annotated[list[Annotated[str, AfterValidator(_new_id)]], _FIRST]
NewTexts = Annotated[list[Annotated[str, AfterValidator(_new_text)]], _FIRST]
Dict = Annotated[dict[str, T], WrapValidator(_entry_by_entry)]
Vector = Annotated[list[float], _FIRST]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, data: Any) -> Any:
        """Of many unknown fields, keep one to be complained of."""
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields):
            return data
        unknown = next(name for name in data if name not in cls.model_fields)
        return {name: data[name] for name in (*cls.model_fields, unknown) if name in data}


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

    users: Annotated[list[UserClicks], _FIRST]


class AddItemsRequest(_Strict):
    """New items with their features."""

    ids: NewIds
    vectors: Dict[Dict[Vector]] = Field(description="By modality, by item id; items may be missing.")
    attributes: Dict[NewTexts] = Field({}, description="By column, one string per id, e.g. titles.")


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
    count: int = Field(description="Items in the list; fewer than k where no more are left to recommend.")
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

    status: str = Field(description="ok, or short of connections.")
    problem: str | None = Field(None, description="What keeps clients from connecting, and what to do.")
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
            around = [known[:_SHOWN] for known in self._alphabet[max(0, place - _NEAR) : place + _NEAR]]
            beside = self._alphabet[max(0, place - 2) : place + 1]
            near = difflib.get_close_matches(unknown[:_SHOWN], around, n=3, cutoff=0.5) or beside
            raise ValueError(
                f"{name}: unknown item id {_short(unknown)}; nearest known ids: {', '.join(map(_short, near))}"
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


def content(answer: Answer) -> bytes:
    """An answer as JSON; the form of :class:`RecommendResponse`."""
    said = {
        "items": [{"id": item.id, "score": item.score} for item in answer.items],
        "count": len(answer.items),
        "adapted": answer.adapted,
        "weights": answer.weights,
    }
    return json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _short(value: object) -> str:
    text = printable(str(value), _SHOWN)
    return f"'{text}'" if isinstance(value, str) else text
