"""Time and memory to read the same interactions from Parquet, by Dataset.from_frame, and from an atomic file.

    python benchmarks/frames.py --out benchmarks/results/frames.json
    python benchmarks/frames.py --before ../earlier --out benchmarks/results/frames.json

Every reading is a process of its own. The peak of memory is that of the reading, beyond what the process held before
it; all ways must give the same codes. ``--before`` has the atomic file also read by the metarec of another checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from data_scale import _measured, generate
from machine import AtLeast, add_machine_options, command_line, stamp

from metarec.data import Dataset, load_atomic
from metarec.files import write_json

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both ways and write the JSON file."""
    options = _parse(arguments)
    places = {"atomic": ROOT, "parquet": ROOT} | ({} if options.before is None else {"atomic before": options.before})
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in places}
    with tempfile.TemporaryDirectory() as folder:
        files = write_both(Path(folder), options.interactions)
        for _ in range(options.repeats):
            for way, place in places.items():
                command = [sys.executable, __file__, "--file", str(files[way.partition(" ")[0]])]
                env = {**os.environ, "PYTHONPATH": str(place)}
                done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
                runs[way].append(json.loads(done.stdout))
        sizes = {way: file.stat().st_size for way, file in files.items()}
    result = {
        "interactions": options.interactions,
        "file_bytes": sizes,
        "runs": runs,
        "parquet_share": {way: compared(runs, way) for way in runs if way != "parquet"},
        "threads": torch.get_num_threads(),
        "polars_threads": pl.thread_pool_size(),
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    print(summary(result), f"written to {options.out}", sep="\n")


def write_both(folder: Path, interactions: int) -> dict[str, Path]:
    """The same rows in both forms."""
    atomic, parquet = folder / "clicks.inter", folder / "clicks.parquet"
    generate(atomic, interactions)
    names = ["user_id", "item_id", "timestamp"]
    scan = pl.scan_csv(atomic, separator="\t", has_header=False, skip_rows=1, new_columns=names)
    scan.sink_parquet(parquet)
    return {"atomic": atomic, "parquet": parquet}


def read(file: Path) -> Dataset:
    """A file of either form."""
    return load_atomic(file) if file.suffix == ".inter" else Dataset.from_frame(file)


def measure(file: Path) -> dict[str, Any]:
    """Read a file here, after a small one of its form."""
    with tempfile.TemporaryDirectory() as folder:
        read(write_both(Path(folder), 1000)["atomic" if file.suffix == ".inter" else "parquet"])
    data, found = _measured(lambda: read(file), file.stat().st_size)
    digest = hashlib.sha256(b"".join(column.tobytes() for column in (data.user, data.item, data.time)))
    digest.update("\n".join(map(str, [*data.users.ids, *data.catalog.items.ids])).encode())
    return {**found, "interactions": len(data), "codes": digest.hexdigest()}


def compared(runs: dict[str, list[dict[str, Any]]], other: str) -> dict[str, float]:
    """Parquet's share of another way's seconds and memory: of the best of the runs.

    Raises:
        ValueError: if the codes differ.
    """
    if len({run["codes"] for own in runs.values() for run in own}) != 1:
        raise ValueError(f"the ways gave different codes: {runs}")
    keys = ("seconds", "cpu_seconds", "peak_growth_bytes")
    best = {way: {key: min(run[key] for run in own) for key in keys} for way, own in runs.items()}
    return {key: best["parquet"][key] / best[other][key] for key in keys}


def summary(result: dict[str, Any]) -> str:
    """The result as a small table."""
    lines = [f"{result['interactions']:,} interactions", f"{'':24}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}"]
    for way, runs in result["runs"].items():
        lines += [
            f"{way:24}{run['seconds']:9.2f}{run['cpu_seconds']:9.2f}{run['peak_growth_bytes'] / 1e6:9.0f}"
            for run in runs
        ]
    for way, share in result["parquet_share"].items():
        figures = "".join(f"{share[key]:9.2f}" for key in ("seconds", "cpu_seconds", "peak_growth_bytes"))
        lines.append(f"{f'parquet / {way}':24}{figures}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE.json", help="where the result goes")
    what.add_argument("--file", type=Path, metavar="FILE", help="read this file here and print the JSON")
    parser.add_argument("--interactions", type=int, action=AtLeast, least=1000, default=10_000_000, metavar="N")
    parser.add_argument("--repeats", type=int, action=AtLeast, least=1, default=2, metavar="N", help="of each way")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="an earlier checkout")
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asked = _parse(None)
    if asked.file is None:
        main()
    else:
        print(json.dumps(measure(asked.file)))
