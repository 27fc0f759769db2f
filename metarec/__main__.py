"""The command ``metarec``, also ``python -m metarec``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metarec import __version__
from metarec.recommender import Recommender
from metarec.serialization import load


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"metarec {options.command}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metarec", description="A new user has clicked three things; what next?")
    parser.add_argument("--version", action="version", version=f"metarec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    style = argparse.ArgumentDefaultsHelpFormatter

    serve = commands.add_parser("serve", help="a saved model as a web service", formatter_class=style)
    add = serve.add_argument
    add("model", type=Path, help="a file that metarec.save wrote")
    add("--host", default="127.0.0.1", help="address to listen on; there is no log-in, so mind who reaches it")
    add("--port", type=int, default=8000, help="port to listen on; 0 for any that is free")
    add("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1 ...")
    add("--max-batch", type=int, default=64, metavar="USERS", help="adapted together in one inner loop")
    add("--waiting", type=int, default=1024, metavar="USERS", help="whose answer is not there yet; more get 429")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="until an answer; later it is 503")
    add("--read-timeout", type=float, default=10.0, metavar="SECONDS", help="for headers, and again for a body")
    add("--allow-changes", action="store_true", help="let clients add and remove items, until the service stops")
    serve.set_defaults(run=_serve)

    export = commands.add_parser("export", help="the scoring path of a saved model as ONNX", formatter_class=style)
    export.add_argument("model", type=Path, help="a file that metarec.save wrote")
    export.add_argument("path", type=Path, help="the ONNX file")
    export.add_argument("--k", type=int, help="put out the best k items instead of all scores")
    export.set_defaults(run=_export)
    return parser


def _serve(options: argparse.Namespace) -> None:
    from metarec.service import Limits, create_app, serve

    limits = Limits(waiting=options.waiting, seconds=options.timeout, read_seconds=options.read_timeout)
    app = create_app(
        Recommender(load(options.model, device=options.device)),
        limits=limits,
        max_batch=options.max_batch,
        allow_changes=options.allow_changes,
        version=__version__,
    )
    serve(app, host=options.host, port=options.port, limits=limits)


def _export(options: argparse.Namespace) -> None:
    from metarec.export import export_onnx

    export_onnx(load(options.model), options.path, k=options.k)


if __name__ == "__main__":
    main()
