"""The command ``metarec``, also ``python -m metarec``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from metarec import __version__
from metarec.installed import in_use
from metarec.io import load
from metarec.options import (
    Parser,
    add_columns,
    add_device,
    add_learned,
    add_list_lengths,
    add_split,
    cell,
    diversity,
    duration,
    feature,
    number,
    refuse,
)

Add = Callable[..., argparse.ArgumentParser]
COUNT, SECONDS = number(int, 1), number(float, 0.001)
CLICKS = "Parquet or CSV, a row for each click"
USERS = "of a model that reads profiles: Parquet or CSV, a row for each user"
MODEL = "a file that metarec.save or Recommender.save wrote"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says.

    Raises:
        SystemExit: with status 2, if that cannot be done; a line that names the command says why.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, TypeError, ModuleNotFoundError, FloatingPointError, torch.OutOfMemoryError) as error:
        refuse(f"metarec {options.command}", str(error))


class _Version(argparse.Action):
    """Says the version, the engine, the threads and the extras."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Called by argparse."""
        sys.stdout.write(f"metarec {__version__}\n{in_use()}\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="metarec", description="A new user has clicked three things; what next?")
    parser.add_argument("--version", action=_Version, nargs=0, help="the version, and what of the library is in use")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    style = argparse.ArgumentDefaultsHelpFormatter

    def command(name: str, told: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=told, description=told, formatter_class=style)

    _add_fit(command("fit", "choose and train a model for your data"))
    _add_evaluate(command("evaluate", "rank what users clicked next, who came after training"))
    _add_recommend(command("recommend", "lists for users, from their clicks"))
    _add_compare(command("compare", "several models on the same clicks: a table, paired intervals, a picture"))
    _add_serve(command("serve", "a saved model as a web service"))
    _add_export(command("export", "the scoring path of a saved model as ONNX"))
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    """The command that serves a model."""
    add = serve.add_argument
    add("model", type=Path, help=MODEL)
    add("--host", default="127.0.0.1", help="address to listen on; there is no log-in, so mind who reaches it")
    add("--port", type=number(int, 0, 65535), default=8000, help="port to listen on; 0 for any that is free")
    add_device(add)
    add("--max-batch", type=COUNT, default=64, metavar="USERS", help="adapted together in one inner loop")
    add("--waiting", type=COUNT, default=1024, metavar="USERS", help="whose answer is not there yet; more get 429")
    add("--timeout", type=SECONDS, default=10.0, metavar="SECONDS", help="until an answer; later it is 503")
    add("--read-timeout", type=SECONDS, default=10.0, metavar="SECONDS", help="for headers, and again for a body")
    add("--write-timeout", type=SECONDS, default=30.0, metavar="SECONDS", help="for a client to take its answer")
    add("--allow-changes", action="store_true", help="let clients tell of clicks, and add and remove items")
    told = "changes are written there before they are answered; MODEL.journal where they are allowed"
    add("--journal", type=Path, metavar="PATH", help=told)
    add("--workers", type=COUNT, default=1, metavar="N", help="processes, each with the whole model")
    learn = "learn on from the journal in a process of its own, so often: 60s, 5m, 1h; with --allow-changes"
    add("--learn", type=duration, metavar="TIME", help=learn)
    serve.set_defaults(run=_serve)


def _add_fit(fit: argparse.ArgumentParser) -> None:
    """The command that makes a model."""
    add = fit.add_argument
    add("clicks", type=Path, help="Parquet or CSV, a row for each click; or a folder of atomic files, or NAME.inter")
    add("--out", type=Path, required=True, metavar="FILE", help="the model; results.json and fit.png go beside it")
    add("--items", type=Path, metavar="FILE", help="Parquet or CSV, a row for each item: its id, a title, others")
    several = "vectors of items; of atomic files, all that are found"
    add("--features", type=feature, nargs="+", default=[], metavar="NAME=FILE", help=several)
    add_columns(add)
    add_learned(add)
    add_split(fit)
    add("--live", action="store_true", help="count clicks up to each question's time, not only those trained on")
    add("--budget", type=number(float, 0.01), metavar="MINUTES", help="that it may take, about; none: as it pays")
    add("--folder", type=Path, metavar="DIR", help="keeps what is done; the same command goes on from there")
    add("--seed", type=number(int, 0), default=0, help="of weights and draws")
    fit.set_defaults(run=_fit)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    """The command that says how good a model is."""
    add = evaluate.add_argument
    add("model", type=Path, help=MODEL)
    add("clicks", type=Path, help=CLICKS)
    add_columns(add)
    add("--users", type=Path, metavar="FILE", help=USERS)
    add_list_lengths(add)
    add("--out", type=Path, metavar="FILE", help=".json for all there is, .csv or .parquet for the metrics")
    evaluate.set_defaults(run=_evaluate)


def _add_recommend(recommend: argparse.ArgumentParser) -> None:
    """The command that makes lists."""
    add = recommend.add_argument
    add("model", type=Path, help=MODEL)
    add("clicks", type=Path, nargs="?", help=CLICKS)
    add_columns(add)
    add("--users", type=Path, metavar="FILE", help=f"{USERS}, with clicks or without")
    add("--history", nargs="+", metavar="ID", help="in place of files: what one user clicked, oldest first")
    add("--profile", type=cell, nargs="+", metavar="COLUMN=VALUE", help="what is known of that user: age=31 city=Lyon")
    add("--k", type=COUNT, default=10, help="length of the lists")
    told = "how much items should differ by features, from 0 to 1; or at most so many of each category of a column"
    add("--diversity", type=diversity, metavar="WEIGHT|COLUMN=N", help=told)
    add("--out", type=Path, metavar="FILE", help=".csv, .parquet or .json; printed as CSV if there is none")
    recommend.set_defaults(run=_recommend)


def _add_compare(compare: argparse.ArgumentParser) -> None:
    """The command that compares models."""
    from metarec.compare_command import RECIPES

    add = compare.add_argument
    add("models", nargs="+", help=f"saved models, or recipes that are fitted first: {', '.join(RECIPES)}")
    add("clicks", type=Path, help=CLICKS)
    add_columns(add)
    add("--users", type=Path, metavar="FILE", help=USERS)
    add_split(compare)
    add_list_lengths(add)
    add("--metric", default="ndcg@10", help="that the differences are of")
    add("--baseline", metavar="MODEL", help="the one that others are compared with; by default the first")
    add("--seed", type=number(int, 0), default=0, help="of what is fitted, and of the draws behind the intervals")
    add("--out", type=Path, metavar="FILE", help=".json for all there is; a picture, .png, goes beside it")
    compare.set_defaults(run=_compare)


def _add_export(export: argparse.ArgumentParser) -> None:
    """The command that exports a model."""
    export.add_argument("model", type=Path, help="a file that metarec.save wrote")
    export.add_argument("path", type=Path, help="the ONNX file")
    export.add_argument("--k", type=COUNT, help="put out the best k items instead of all scores")
    export.set_defaults(run=_export)


def _fit(options: argparse.Namespace) -> None:
    from metarec.fit_command import fit_files

    fit_files(options)


def _evaluate(options: argparse.Namespace) -> None:
    from metarec.read_commands import evaluate_file

    evaluate_file(options)


def _recommend(options: argparse.Namespace) -> None:
    from metarec.read_commands import recommend_file

    recommend_file(options)


def _compare(options: argparse.Namespace) -> None:
    from metarec.compare_command import compare_files

    compare_files(options)


def _serve(options: argparse.Namespace) -> None:
    from metarec.service import Build, Limits, learning, serve, serve_workers

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
        learn=options.learn,
    )
    app = build() if options.workers == 1 else None
    with learning(build):
        if app is not None:
            serve(app, host=options.host, port=options.port, limits=limits)
        else:
            serve_workers(build, options.workers, host=options.host, port=options.port)


def _export(options: argparse.Namespace) -> None:
    from metarec.export import export_onnx

    if options.path.is_dir():
        raise IsADirectoryError(f"{options.path} is a folder; name the file to write")
    export_onnx(load(options.model), options.path, k=options.k)


if __name__ == "__main__":
    main()
