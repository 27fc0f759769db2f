"""The command ``metarec``, also ``python -m metarec``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from metarec import __version__
from metarec.functional.text import printable
from metarec.io import load

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
    except (OSError, ValueError, TypeError, ModuleNotFoundError, torch.cuda.OutOfMemoryError) as error:
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

    export = commands.add_parser("export", help="the scoring path of a saved model as ONNX", formatter_class=style)
    export.add_argument("model", type=Path, help="a file that metarec.save wrote")
    export.add_argument("path", type=Path, help="the ONNX file")
    export.add_argument("--k", type=count, help="put out the best k items instead of all scores")
    export.set_defaults(run=_export)
    return parser


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
