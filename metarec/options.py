"""What the commands share: a parser that says what is meant, and readers of options."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from metarec.files import replace_file
from metarec.functional.text import printable

Number = TypeVar("Number", int, float)
_UNITS = {"s": 1, "m": 60, "h": 3600}
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


def refuse(command: str, why: str) -> NoReturn:
    """Say in one line why a command cannot be done, and end with status 2."""
    line = printable(f"{command}: {' '.join(why.split())}")
    sys.stderr.write(f"{line}\n")
    refusal = SystemExit(line)
    refusal.code = 2
    raise refusal


class Parser(argparse.ArgumentParser):
    """Says what is wrong in the line that all refusals have, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Refuse what cannot be read."""
        found = _CHOICE.search(message)
        hint = meant(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        refuse(self.prog, f"{message}{hint}; see {self.prog} --help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As its base, but nothing may be unknown."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = meant(unknown[0].partition("=")[0], self._option_string_actions)
            refuse(self.prog, f"unknown arguments: {' '.join(unknown)}{hint}; see {self.prog} --help")
        return found, unknown


def meant(word: str, known: Iterable[str]) -> str:
    """The known word that is most like another, as the end of a message; nothing if none is like it.

    Example:
        >>> meant("--colduser", ["--cold-users", "--budget"])
        ', did you mean --cold-users?'
    """
    near = difflib.get_close_matches(word[:60], list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def number(kind: Callable[[str], Number], least: float, most: float = sys.float_info.max) -> Callable[[str], Number]:
    """A reader of numbers within bounds."""
    bounds = f"from {least:g} to {most:g}" if most < sys.float_info.max else f"of at least {least:g}"

    def read(text: str) -> Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"expected a number {bounds}, got '{printable(text, 60)}'")

    return read


def duration(text: str) -> float:
    """Seconds, as ``90``, ``60s``, ``5m`` or ``1h``.

    Raises:
        argparse.ArgumentTypeError: if it is none above 0.

    Example:
        >>> duration("5m"), duration("0.5")
        (300.0, 0.5)
    """
    unit = _UNITS.get(text[-1:])
    with contextlib.suppress(ValueError):
        value = float(text if unit is None else text[:-1]) * (unit or 1)
        if 0 < value < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"expected a time such as 60s, 5m or 1h, got '{printable(text, 60)}'")


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        found = torch.device(text)
        torch.zeros(1, device=found).item()
    except Exception as error:  # each kind of device has its own way of not being there
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise argparse.ArgumentTypeError(f"'{printable(text, 60)}' is not to be had here ({why}); cpu is") from error
    return found


def feature(text: str) -> tuple[str, Path]:
    """The name of a modality and its file."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, as in text=text.npz, got '{printable(text, 60)}'")
    return name, Path(file)


def least(text: str) -> tuple[str, float]:
    """A column and the least value of a click."""
    column, _, value = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if column:
            return column, float(value)
    raise argparse.ArgumentTypeError(f"expected COLUMN=NUMBER, as in rating=4, got '{printable(text, 60)}'")


def cell(text: str) -> tuple[str, str]:
    """A column and a value."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"expected COLUMN=VALUE, as in age=31, got '{printable(text, 60)}'")
    return column, value


def diversity(text: str) -> float | dict[str, int]:
    """A weight from 0 to 1, or a column and how many items of each category at most."""
    column, equals, most = text.partition("=")
    with contextlib.suppress(ValueError):
        if equals and column:
            return {column: int(most)}
        return float(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, or COLUMN=N, got '{printable(text, 60)}'")


def add_device(add: Callable[..., object]) -> None:
    """The option that says where a model runs."""
    add("--device", type=device, default="cpu", help="where the model runs: cpu, cuda, cuda:1 ...")


def add_columns(add: Callable[..., object]) -> None:
    """Options for the columns of clicks, and the device."""
    for name in ("user", "item", "time"):
        add(f"--{name}", metavar="COLUMN", help=f"the column of {name}s; found by its name")
    add("--kind", metavar="COLUMN", help="the column of kinds of events: view, cart, purchase ...")
    add_device(add)


def add_learned(add: Callable[..., object]) -> None:
    """Options for what is learned from beside who clicked what, and which rows are clicks."""
    add("--attributes", nargs="+", default=[], metavar="COLUMN", help="of the items, to learn from: genres, price ...")
    add("--users", type=Path, metavar="FILE", help="Parquet or CSV, a row for each user; of atomic files, NAME.user")
    add("--profile", nargs="+", default=[], metavar="COLUMN", help="of the users, to learn from: age, city ...")
    add("--target", metavar="KIND", help="of --kind, what is to be predicted; the others are read in histories")
    add("--weight", metavar="COLUMN", help="of the clicks, what each weighs in training: ratings, counts")
    add("--positive", type=least, nargs="+", default=[], metavar="COLUMN=LEAST", help="rows below are no clicks")


def add_split(command: argparse.ArgumentParser) -> None:
    """Options for where the split in time is."""
    when = command.add_mutually_exclusive_group()
    share = "of the users, the last to start, who are not trained on"
    when.add_argument("--cold-users", type=number(float, 0.01, 0.9), default=0.2, metavar="SHARE", help=share)
    when.add_argument("--split", metavar="TIME", help="last moment that is trained on, as a date or as in the clicks")


def add_list_lengths(add: Callable[..., object]) -> None:
    """Options for what an evaluation is about."""
    add(
        "--k",
        type=number(int, 1),
        nargs="+",
        default=[5, 10, 20],
        help="lengths of the lists that the metrics are about",
    )
    parts = ("test", "validation", "serving")
    add("--part", choices=parts, default="test", help="rank each user's last click, or the one before it")
    add("--category", metavar="COLUMN", help="of the items, which miscalibration is about; popularity by default")


def writer(path: Path | None) -> Callable[[Any], object]:
    """What writes a frame to a file, by its ending, or as CSV to the standard output.

    Raises:
        ValueError: if the ending is another.
    """
    if path is None:
        return lambda frame: sys.stdout.write(frame.write_csv())
    ways = {".csv": "write_csv", ".parquet": "write_parquet", ".json": "write_json"}
    if path.suffix not in ways:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(ways)}")
    return lambda frame: replace_file(path, _bytes(frame, ways[path.suffix]))


def _bytes(frame: Any, write: str) -> bytes:
    file = io.BytesIO()
    getattr(frame, write)(file)
    return file.getvalue()
