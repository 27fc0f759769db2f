"""What recommends best to cold users in our comparison, from files to ten recommendations for someone new.

Usage::

    python examples/mml_blend.py                              # MovieTweetings, seven minutes on two cores
    python examples/mml_blend.py --live                       # everybody's clicks so far may be counted
    python examples/mml_blend.py --data dataset/mine --clicks 17 4 256
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mml_hangzhou import device, item_ids, load, titles, usual_clicks

import metarec as mr
from metarec.report import results_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do the job."""
    options = parse(arguments)
    try:
        run(options)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"mml_blend: {error}", file=sys.stderr)
        sys.exit(2)


def run(options: argparse.Namespace) -> None:
    """Load, split in time, train with nested temporal validation, test, recommend."""
    data = load(options)
    up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    clicks = item_ids(data.catalog, options.clicks or usual_clicks(up))
    print(f"{data.name}: {len(up.user_codes):,} users upstream, {len(down.user_codes):,} cold users after them")
    print(f"{up}\n{down}")
    began = time.perf_counter()
    live = data if options.live else None
    blend = mr.recipes.mml_blend(up, live=live, day=options.day, seed=options.seed, device=options.device)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    popular = mr.Popularity(up) if live is None else mr.recipes.LivePopularity(live, window=live.days(7, options.day))
    methods: dict[str, mr.Method] = {"popularity": popular, "mml_blend": blend}
    reports = {name: mr.evaluate(method, down, progress=name) for name, method in methods.items()}
    print(f"{results_table(reports)}\n{reports['mml_blend'].info['rule']}")
    called = dict(zip(data.catalog.items.ids, titles(data.catalog), strict=True))
    print(f"someone new has clicked {', '.join(called[name] or name for name in clicks)}; recommended:")
    for place, item in enumerate(mr.Recommender(blend).adapt(clicks).recommend(k=10), start=1):
        print(f"{place:3}. {called[item.id] or item.id}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of RecBole atomic files (default: as in mml_hangzhou.py)")
    parser.add_argument("--live", action="store_true", help="count everybody's clicks until each question")
    parser.add_argument("--day", type=float, help="a day in the units of the data (default: told from the times)")
    parser.add_argument("--clicks", nargs="+", metavar="ITEM", help="titles or ids of someone new's clicks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda ... (default: auto)")
    parser.set_defaults(modalities=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
