"""The command ``metarec``, also ``python -m metarec``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from metarec import __version__
from metarec.data.dataset import Dataset
from metarec.data.examples import begun_after, on_catalog
from metarec.data.vocabulary import WHOLE
from metarec.evaluation import evaluate
from metarec.files import replace_file
from metarec.functional.text import printable
from metarec.io import load
from metarec.nn.record import record_of
from metarec.recommender import Recommender

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says.

    Raises:
        SystemExit: with status 2, if that cannot be done; a line that names the command says why.
    """
    options, unknown = _parser().parse_known_args(arguments)
    try:
        if unknown:
            raise ValueError(f"unknown arguments: {' '.join(unknown)}; see metarec {options.command} --help")
        options.run(options)
    except (OSError, ValueError, TypeError, ModuleNotFoundError, FloatingPointError, torch.OutOfMemoryError) as error:
        _refuse(f"metarec {options.command}", str(error))


def _refuse(command: str, why: str) -> NoReturn:
    line = printable(f"{command}: {' '.join(why.split())}")
    sys.stderr.write(f"{line}\n")
    refusal = SystemExit(line)
    refusal.code = 2
    raise refusal


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the line that all refusals have."""

    def error(self, message: str) -> NoReturn:
        _refuse(self.prog, f"{message}; see {self.prog} --help")


def _number(kind: Callable[[str], Number], least: float, most: float = sys.float_info.max) -> Callable[[str], Number]:
    """A reader of numbers within bounds."""
    bounds = f"from {least:g} to {most:g}" if most < sys.float_info.max else f"of at least {least:g}"

    def read(text: str) -> Number:
        with contextlib.suppress(ValueError):
            number = kind(text)
            if least <= number <= most:
                return number
        raise argparse.ArgumentTypeError(f"expected a number {bounds}, got '{printable(text, 60)}'")

    return read


def _device(text: str) -> torch.device:
    """A device that is there."""
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device has its own way of not being there
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise argparse.ArgumentTypeError(f"'{printable(text, 60)}' is not to be had here ({why}); cpu is") from error
    return device


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="metarec", description="A new user has clicked three things; what next?")
    parser.add_argument("--version", action="version", version=f"metarec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    style = argparse.ArgumentDefaultsHelpFormatter

    serve = commands.add_parser("serve", help="a saved model as a web service", formatter_class=style)
    add = serve.add_argument
    add("model", type=Path, help="a file that metarec.save or Recommender.save wrote")
    add("--host", default="127.0.0.1", help="address to listen on; there is no log-in, so mind who reaches it")
    count, seconds = _number(int, 1), _number(float, 0.001)
    add("--port", type=_number(int, 0, 65535), default=8000, help="port to listen on; 0 for any that is free")
    add("--device", type=_device, default="cpu", help="where the model runs: cpu, cuda, cuda:1 ...")
    add("--max-batch", type=count, default=64, metavar="USERS", help="adapted together in one inner loop")
    add("--waiting", type=count, default=1024, metavar="USERS", help="whose answer is not there yet; more get 429")
    add("--timeout", type=seconds, default=10.0, metavar="SECONDS", help="until an answer; later it is 503")
    add("--read-timeout", type=seconds, default=10.0, metavar="SECONDS", help="for headers, and again for a body")
    add("--write-timeout", type=seconds, default=30.0, metavar="SECONDS", help="for a client to take its answer")
    add("--allow-changes", action="store_true", help="let clients tell of clicks, and add and remove items")
    told = "changes are written there before they are answered; MODEL.journal where they are allowed"
    add("--journal", type=Path, metavar="PATH", help=told)
    add("--workers", type=count, default=1, metavar="N", help="processes, each with the whole model")
    serve.set_defaults(run=_serve)

    _add_fit(commands.add_parser("fit", help="choose and train a model for your data", formatter_class=style))
    _add_readers(commands.add_parser, style)
    export = commands.add_parser("export", help="the scoring path of a saved model as ONNX", formatter_class=style)
    export.add_argument("model", type=Path, help="a file that metarec.save wrote")
    export.add_argument("path", type=Path, help="the ONNX file")
    export.add_argument("--k", type=count, help="put out the best k items instead of all scores")
    export.set_defaults(run=_export)
    return parser


def _add_fit(fit: argparse.ArgumentParser) -> None:
    """The command that makes a model."""
    add = fit.add_argument
    add("clicks", type=Path, help="Parquet or CSV, a row for each click; or a folder of atomic files, or NAME.inter")
    add("--out", type=Path, required=True, metavar="FILE", help="the model; results.json and fit.png go beside it")
    add("--items", type=Path, metavar="FILE", help="Parquet or CSV, a row for each item: its id, a title, others")
    several = "vectors of items; of atomic files, all that are found"
    add("--features", type=_feature, nargs="+", default=[], metavar="NAME=FILE", help=several)
    _add_columns(add)
    when = fit.add_mutually_exclusive_group()
    share = "of the users, the last to start, who are not trained on"
    when.add_argument("--cold-users", type=_number(float, 0.01, 0.9), default=0.2, metavar="SHARE", help=share)
    when.add_argument("--split", metavar="TIME", help="last moment that is trained on, as a date or as in the clicks")
    add("--budget", type=_number(float, 0.01), metavar="MINUTES", help="that it may take, about; none: as it pays")
    add("--folder", type=Path, metavar="DIR", help="keeps what is done; the same command goes on from there")
    add("--seed", type=_number(int, 0), default=0, help="of weights and draws")
    fit.set_defaults(run=_fit)


def _feature(text: str) -> tuple[str, Path]:
    """The name of a modality and its file."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, as in text=text.npz, got '{printable(text, 60)}'")
    return name, Path(file)


def _add_columns(add: Callable[..., object]) -> None:
    for name in ("user", "item", "time"):
        add(f"--{name}", metavar="COLUMN", help=f"the column of {name}s; found by its name")
    add("--device", type=_device, default="cpu", help="where the model runs: cpu, cuda, cuda:1 ...")


def _add_readers(add_parser: Callable[..., argparse.ArgumentParser], style: type[argparse.HelpFormatter]) -> None:
    """The commands that read clicks."""
    evaluate = add_parser(
        "evaluate", help="rank what users clicked next, who came after training", formatter_class=style
    )
    recommend = add_parser("recommend", help="lists for users, from their clicks", formatter_class=style)
    count = _number(int, 1)
    for command in (evaluate, recommend):
        command.add_argument("model", type=Path, help="a file that metarec.save or Recommender.save wrote")
        may_be_missing = "?" if command is recommend else None
        command.add_argument("clicks", type=Path, nargs=may_be_missing, help="Parquet or CSV, a row for each click")
        _add_columns(command.add_argument)
    add = evaluate.add_argument
    add("--k", type=count, nargs="+", default=[5, 10, 20], help="lengths of the lists that the metrics are about")
    parts = ("test", "validation", "serving")
    add("--part", choices=parts, default="test", help="rank each user's last click, or the one before it")
    add("--out", type=Path, metavar="FILE", help=".json for all there is, .csv or .parquet for the metrics")
    evaluate.set_defaults(run=_evaluate)
    add = recommend.add_argument
    add("--history", nargs="+", metavar="ID", help="in place of clicks: what one user clicked, oldest first")
    add("--k", type=count, default=10, help="length of the lists")
    add("--out", type=Path, metavar="FILE", help=".csv, .parquet or .json; printed as CSV if there is none")
    recommend.set_defaults(run=_recommend)


def _fit(options: argparse.Namespace) -> None:
    from metarec.fit_command import fit_files

    fit_files(options)


def _evaluate(options: argparse.Namespace) -> None:
    write = _writer(options.out)
    model = load(options.model, device=options.device)
    until, data = record_of(model).fitted_until, _clicks(options, model)
    report = evaluate(model, data if until is None else _begun_after(data, until), k=options.k, part=options.part)
    sys.stdout.write(f"{report}\n")
    if options.out is not None and options.out.suffix == ".json":
        report.to_json(options.out)
    elif options.out is not None:
        write(report.to_frame())


def _recommend(options: argparse.Namespace) -> None:
    write = _writer(options.out)
    if (options.clicks is None) == (options.history is None):
        raise ValueError("expected a file of clicks, or --history and ids")
    recommender = Recommender.load(options.model, device=options.device)
    items = recommender.catalog.items
    if options.history is not None:
        history = [int(name) if items.whole_numbers and WHOLE.fullmatch(name) else name for name in options.history]
        write(recommender.adapt([history]).recommend(k=options.k).to_frame())
        return
    data = _clicks(options, recommender.model)
    ends = zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True)
    histories = (items.decode(data.item[start:end].tolist()) for start, end in ends)
    names, frames = data.users.decode(data.user_codes.tolist()), []
    for users in recommender.stream(histories):
        frames.append(users.recommend(k=options.k).to_frame(names[: len(users)]))
        del names[: len(users)]
    write(importlib.import_module("polars").concat(frames))


def _clicks(options: argparse.Namespace, model: Any) -> Dataset:
    """The clicks of a file, on the items of a model.

    Raises:
        ValueError: if no item is the model's.
    """
    read = Dataset.from_frame(options.clicks, user=options.user, item=options.item, time=options.time)
    data = on_catalog(read, model.catalog, model.warm)
    if not len(data):
        raise ValueError(
            f"{options.clicks}: no click is on an item of the model; its ids look like {model.catalog.items.ids[:3]}, "
            f"those of the file like {read.catalog.items.ids[:3]}"
        )
    return data


def _begun_after(data: Dataset, until: float) -> Dataset:
    """Those who came after training.

    Raises:
        ValueError: if nobody did.
    """
    late = begun_after(data, until)
    if not len(late):
        first, last = data.time.min(), data.time.max()
        raise ValueError(
            f"no user began after {until}, until when the model was fitted; the times of the clicks are from {first} "
            f"to {last}: are they in the unit of the training data?"
        )
    return late


def _writer(path: Path | None) -> Callable[[Any], object]:
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


def _serve(options: argparse.Namespace) -> None:
    from metarec.service import Build, Limits, serve, serve_workers

    limits = Limits(
        waiting=options.waiting,
        seconds=options.timeout,
        read_seconds=options.read_timeout,
        write_seconds=options.write_timeout,
    )
    build = Build(
        options.model,
        limits,
        device=options.device,
        max_batch=options.max_batch,
        allow_changes=options.allow_changes,
        journal=options.journal,
        version=__version__,
    )
    if options.workers == 1:
        serve(build(), host=options.host, port=options.port, limits=limits)
    else:
        serve_workers(build, options.workers, host=options.host, port=options.port)


def _export(options: argparse.Namespace) -> None:
    from metarec.export import export_onnx

    if options.path.is_dir():
        raise IsADirectoryError(f"{options.path} is a folder; name the file to write")
    export_onnx(load(options.model), options.path, k=options.k)


if __name__ == "__main__":
    main()
