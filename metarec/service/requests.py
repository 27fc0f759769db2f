"""What clients send and get: the JSON bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from metarec.service.answering import Answer

T = TypeVar("T")
_ID = 256  # characters of a new id
_TEXT = 10_000  # characters of a new attribute
_NUMBER = 1e300  # a new attribute is below it; not infinite, and whole numbers fit a float
_REASONS = 10  # named with each item
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_UNCLEAN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line ends, lone surrogates


def _entry_by_entry(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a dict up to its first fault, as ``fail_fast`` does for lists."""
    if not isinstance(value, dict):
        return check(value)
    out: dict[str, Any] = {}
    for name, part in value.items():
        out.update(check({name: part}))
    return out


def _a_weight_or_most(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One fault, in place of one of each form."""
    try:
        return check(value)
    except ValidationError:
        said = "Input should be a number from 0 to 1, or by attribute a whole number of at least 1"
        raise PydanticCustomError("diversity", said) from None


def _new_id(text: str | int) -> str | int:
    if isinstance(text, int):
        return text
    if not text.strip():
        raise PydanticCustomError("id", "Input should be an id, got nothing or blanks")
    if text != text.strip():
        raise PydanticCustomError("id", "Input should be an id without blanks around it")
    return _clean(text, _ID)


def _new_cell(value: Any) -> Any:
    """A new item's value in a column."""
    if isinstance(value, str):
        return _clean(value, _TEXT)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [_clean(text, _TEXT) for text in value]
    if value is None or (isinstance(value, bool | int | float) and abs(value) < _NUMBER):
        return value
    raise PydanticCustomError("cell", "Input should be a text, a finite number, a list of texts, or null")


def _clean(text: str, most: int) -> str:
    """A text that is kept, and comes back in the answers to others."""
    if len(text) > most:
        raise PydanticCustomError("long", f"Input should have at most {most} characters, got {len(text)}")
    if _UNCLEAN.search(text):
        raise PydanticCustomError("text", "Input should have no control characters and no lone surrogates")
    return text


# A hostile body has as many faults as bytes; making an error of each takes seconds. The first one says enough.
_FIRST = Field(fail_fast=True)
Words = Annotated[list[str], _FIRST]


class _AnId:
    """The schema of an id: text, or a whole number where those of the model are."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds: list[CoreSchema | tuple[CoreSchema, str]] = [
            core_schema.str_schema(strict=True),
            core_schema.int_schema(strict=True),
        ]
        said = "Input should be a valid string, or a whole number"
        return core_schema.union_schema(kinds, mode="left_to_right", custom_error_type="id", custom_error_message=said)


AnId = Annotated[Any, _AnId]
Ids = Annotated[list[AnId], _FIRST]
NewId = Annotated[AnId, AfterValidator(_new_id)]
NewIds = Annotated[list[NewId], _FIRST]
NewCells = Annotated[list[Annotated[Any, AfterValidator(_new_cell)]], _FIRST]
Dict = Annotated[dict[str, T], WrapValidator(_entry_by_entry)]
Diversity = Annotated[
    Annotated[float, Field(ge=0, le=1)] | Dict[Annotated[int, Field(ge=1)]], WrapValidator(_a_weight_or_most)
]
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
    filter: Dict[Words] | None = Field(
        None, description="By attribute, values of which an item must have one: as its text, or as a word of it."
    )
    attributes: Words | None = Field(
        None, description="Attributes shown with each item; unset, the title if the catalogue has titles."
    )
    diversity: Diversity | None = Field(
        None, description="From 0 to 1, how much items should differ; or by attribute, at most so many of a category."
    )
    because: int = Field(0, ge=0, le=_REASONS, description="Name so many clicks that moved an item up most.")


def _clicks_or_user(schema: dict[str, Any]) -> None:
    """Who is named needs no clicks."""
    schema["required"] = [name for name in schema.get("required", ()) if name != "clicks"]


class UserClicks(_Strict):
    """One user: what was clicked, or the name of someone whose clicks were told to /clicks."""

    model_config = ConfigDict(json_schema_extra=_clicks_or_user)

    clicks: Ids = Field(description="Ids of what the user clicked, oldest first. [] gives the unadapted ranking.")
    user: AnId | None = Field(None, description="In place of clicks: a user whose clicks were told to /clicks.")
    kinds: Words | None = Field(None, description="Of several kinds of events, that of each of the clicks.")
    candidates: Ids | None = Field(None, description="Score these ids only, for this user.")
    profile: Dict[str | float | Words] | None = Field(
        None, description="What is known of the user, by column: a text, a number, or a list of texts."
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        return {**data, "clicks": []} if isinstance(data, dict) and "user" in data and "clicks" not in data else data


class RecommendRequest(UserClicks, _Wanted):
    """One user, and what is wanted."""


class RecommendUsersRequest(_Wanted):
    """Several users."""

    users: Annotated[list[UserClicks], _FIRST]


class Click(_Strict):
    """One click."""

    user: NewId = Field(description="Who clicked: any id, known or not.")
    item: AnId
    time: float = Field(description="In the units of the model's data; none before the last click that is known.")
    kind: str | None = Field(None, description="Of several kinds of events, that of this one; unset, a click.")


class ClicksRequest(_Strict):
    """New clicks, of any users."""

    clicks: Annotated[list[Click], _FIRST]


class AddItemsRequest(_Strict):
    """New items with their features."""

    ids: NewIds
    vectors: Dict[Dict[Vector]] = Field({}, description="By modality, by item id; items may be missing.")
    attributes: Dict[NewCells] = Field(
        {}, description="By column, one value per id: a text, a number, several texts, or null for none."
    )


class ItemsRequest(_Strict):
    """Items of the catalogue."""

    ids: Ids


class ClickedItem(BaseModel):
    """A click, and what it did to an item of the list."""

    id: str | int
    effect: float = Field(description="How far it moved the item up, in standard deviations of the user's scores.")


class Item(BaseModel):
    """One entry of a list."""

    id: str | int
    score: float = Field(description="Comparable within one user's list, not between users.")
    attributes: dict[str, str] | None = Field(None, description="Those that were asked for.")
    because: list[ClickedItem] | None = Field(None, description="Clicks that moved it up most, if asked for.")


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


class ClicksResponse(BaseModel):
    """What was taken in."""

    clicks: int
    new_users: list[str | int] = Field(description="Users of whom no click was known before.")
    not_counted: int = Field(description="Clicks that moved no count, as their users clicked too often that day.")


class HealthResponse(BaseModel):
    """What is being served."""

    status: str = Field(description="ok, or short of connections.")
    problem: str | None = Field(None, description="What keeps clients from connecting, and what to do.")
    items: int
    learners: list[str]
    waiting: int
    version: str
    not_counted: int | None = Field(None, description="Clicks so far that moved no count; see /clicks.")
    learning: dict[str, Any] | None = Field(None, description="How the learner is, and which weights answer.")


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    error: str


def content(answer: Answer, columns: Mapping[str, Mapping[str, str]]) -> bytes:
    """An answer as JSON; the form of :class:`RecommendResponse`.

    Args:
        answer: the list.
        columns: attributes that are shown, by item id.
    """
    items: list[dict[str, Any]] = [{"id": item.id, "score": item.score} for item in answer.items]
    if columns:
        for item in items:
            item["attributes"] = {name: column[item["id"]] for name, column in columns.items()}
    for item, reasons in zip(items, answer.because or (), strict=answer.because is not None):
        item["because"] = [{"id": reason.id, "effect": reason.effect} for reason in reasons]
    said = {"items": items, "count": len(items), "adapted": answer.adapted, "weights": answer.weights}
    return _ENCODER.encode(said).encode()
