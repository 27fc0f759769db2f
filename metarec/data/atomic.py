"""RecBole atomic files -> Dataset. The readers are imported where a file is read: with polars they cost 0.2 s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.data.encodings import Encoding
from metarec.types import Modality

if TYPE_CHECKING:
    import polars as pl

    from metarec.data.columns import Asked, Columns
    from metarec.data.events import Events
    from metarec.data.kinds import OtherEvents
    from metarec.data.profiles import Profiles
    from metarec.data.table import Table

NOTHING: Mapping[str, float] = MappingProxyType({})
LOOKED_AT = 1 << 16  # bytes by which the columns are told apart
ARRAYS = ("npz", "pth", "pt", "npy")


def load_atomic(
    path: str | Path,
    modalities: Sequence[str] | Mapping[str, str | Path] = (),
    *,
    attributes: Sequence[str] = (),
    profile: Sequence[str] | Mapping[str, Encoding] = (),
    time_field: str | None = None,
    weight_field: str | None = None,
    kind_field: str | None = None,
    target: str | None = None,
    positive: Mapping[str, float] = NOTHING,
    ignore: Sequence[str] = (),
) -> Dataset:
    r"""Read interactions, items and their features from RecBole atomic files.

    The files are tab separated, their header columns ``name:type``. ``<dataset>.inter`` needs ``user_id:token`` and
    ``item_id:token``; ``<dataset>.item`` (``item_id:token`` and any attributes) may be absent. Both may end in
    ``.gz``. Codes depend on the sorted ids, not on the order of the rows. Times are kept as int64 where all are whole
    numbers and as float64 otherwise. Blanks around ids do not count.

    Every row is a click, but for ``positive``. A column that nobody asked for and that looks like a list of clicks is
    refused; one that looks like a label and holds 0 is warned of; any other is counted in ``dropped``.

    The features of a modality called ``text`` are the first found of ``text.npz``, ``text.pth``, ``text.pt``,
    ``text.npy``, ``<dataset>.text``, ``text.item`` and ``text.tsv`` in the folder, and a column ``text:float_seq`` of
    the item file. The forms are described at ``metarec.data.features.load_modality``.

    Args:
        path: a folder such as ``dataset/hangzhou`` that holds ``hangzhou.inter`` (or one ``.inter`` file of another
            name), or the ``.inter`` file itself.
        modalities: names of the modalities to read, or name -> feature file.
        attributes: columns of the item file to learn from, of type token, token_seq (values separated by blanks) or
            float; together they are the modality ``attributes``. See ``metarec.data.encodings``.
        profile: columns of ``<dataset>.user``, likewise, that say something of the users before they click; or
            ``model.profile``, how a model encodes them.
        time_field: the time column, of type float. By default the one that is called like a time (``timestamp``,
            ``exposure_time``, ``time_ms``, ``Date``, ...) or, failing that, holds unix times; where there is none, the
            order of the rows is the order in time.
        weight_field: a column of numbers above 0, of type float: what each click weighs in training.
        kind_field: a column of type token that says what each row is: ``view``, ``cart`` or ``purchase``, say.
        target: the kind that is to be predicted; see :meth:`metarec.Dataset.from_frame`.
        positive: column -> least value of a click, e.g. ``{"label": 1}`` or ``{"rating": 4}``; other rows are left out.
        ignore: columns of the interactions to pass over, whatever they look like.

    Returns:
        Interactions sorted by user, then time, ties in file order; ``warm`` is True for the items that occur in them.
        ``dropped`` counts the rows that are no clicks, the columns that are not read, the feature rows of unknown items
        or of zeros, and the items without features. ``day`` is 0 where the order of the rows stands in for the time.

    Raises:
        FileNotFoundError: if a file, or every candidate for a modality, is missing; lists what was looked for.
        ValueError: if a file is not as described, or a column may be the time or a list of clicks and no argument says
            what it is; names the line, the column and the value.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "tiny"
        >>> folder.mkdir()
        >>> rows = ["user_id:token\titem_id:token\ttimestamp:float", "u2\tb\t9", "u1\tb\t8", "u1\ta\t7"]
        >>> _ = (folder / "tiny.inter").write_text("\n".join(rows))
        >>> _ = (folder / "tiny.text").write_text("item_id:token\ttxt_emb:float_seq\na\t0.5 1\nb\t2 3")
        >>> data = load_atomic(folder, modalities=["text"])
        >>> data
        Dataset(tiny: 3 interactions, 2 users, 2 items, modalities ['text'])
        >>> data.catalog.items.decode(data.item), data.time.tolist()
        (['a', 'b', 'b'], [7, 8, 9])
    """
    from metarec.data.columns import Asked

    inter = _find_inter(_checked(path, modalities))
    name = inter.name.removesuffix(".gz").removesuffix(".inter")
    item_table = _read_items(inter.parent, name)
    known = [] if item_table is None else [item_table.unique_ids("item_id")]
    asked = Asked(time_field, positive, ignore, weight=weight_field, kind=kind_field, target=target)
    columns, events, others = _events(inter, asked, known)
    unread = {f"values of column {column!r}, which is not read": events.rows for column in columns.unread}
    found, dropped = _modalities(modalities, inter.parent, name, events.items, item_table)
    warm, kinds = np.bincount(events.item, minlength=events.items.size) > 0, others.names if others else ()
    encodings, learned = _learned(attributes, item_table, texts := _attributes(item_table, events.items), found)
    catalog = Catalog(events.items, found | learned, texts, encodings=encodings, kinds=kinds)
    return Dataset(
        *(events.users, catalog, events.user, events.item, events.time, warm),
        name,
        events.dropped | unread | dropped,
        0.0 if events.numbered else None,
        profiles=_profiles(profile, inter.parent / f"{name}.user", events.users),
        weight=events.weight,
        others=others,
    )


def _events(inter: Path, asked: Asked, known: Sequence[pl.Series]) -> tuple[Columns, Events, OtherEvents | None]:
    """The columns that are read, the clicks, and events of other kinds."""
    from metarec.data.columns import Columns
    from metarec.data.events import read_events
    from metarec.data.table import read_blocks

    columns = Columns(next(read_blocks(inter, LOOKED_AT)), asked)
    return columns, *read_events(inter, columns, read_blocks(inter), known).apart(columns)


def _checked(path: str | Path, modalities: object) -> Path:
    if isinstance(modalities, str):
        raise ValueError(f"modalities must be names, got the string {modalities!r}; write ({modalities!r},)")
    return Path(path)


def find_modalities(path: str | Path) -> tuple[str, ...]:
    r"""The modalities whose features ``load_atomic`` would find beside the interactions, sorted.

    Args:
        path: as for ``load_atomic``.

    Raises:
        FileNotFoundError: if there are no interactions.
        ValueError: if the item file is not an atomic file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "tiny"
        >>> folder.mkdir()
        >>> _ = (folder / "tiny.inter").write_text("user_id:token\titem_id:token\nu\ta")
        >>> _ = (folder / "tiny.text").write_text("item_id:token\ttxt_emb:float_seq\na\t0.5 1")
        >>> np.savez(folder / "image.npz", ids=["a"], feat=[[1.0]])
        >>> find_modalities(folder)
        ('image', 'text')
    """
    inter = _find_inter(Path(path))
    dataset = inter.name.removesuffix(".gz").removesuffix(".inter")
    table = _read_items(inter.parent, dataset)
    found = {name for name, kind in table.types.items() if kind == "float_seq"} if table else set()
    for file in inter.parent.iterdir():
        stem, _, end = file.name.rpartition(".")
        own = stem == dataset and end not in ARRAYS  # <dataset>.<name>, not <name>.<ending>
        if end in ARRAYS or (end in ("item", "tsv") and not own and _holds_features(file)):
            found.add(stem)
        elif own and end not in ("inter", "item") and _holds_features(file):
            found.add(end)
    return tuple(sorted(name for name in found if name and "." not in name))


def _holds_features(file: Path) -> bool:
    """Whether the header is that of an atomic feature file."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        columns = lines.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    return "item_id:token" in columns and any(column.endswith(":float_seq") for column in columns)


def _find_inter(path: Path) -> Path:
    """The .inter file that a folder or file name means."""
    if path.is_file():
        if not path.name.removesuffix(".gz").endswith(".inter"):
            raise ValueError(f"{path}: expected an .inter or .inter.gz file, or the folder that holds it")
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or file; expected a folder holding NAME.inter, or the file")
    named = [path / f"{path.resolve().name}.inter{end}" for end in ("", ".gz")]
    present = [file for file in named if file.is_file()]
    others = sorted([*path.glob("*.inter"), *path.glob("*.inter.gz")])
    if not present and len(others) != 1:
        looked = f"looked for {named[0].name}, {named[1].name} or a single other .inter file"
        found = f"found {[file.name for file in others]}; pass the file itself" if others else "found none"
        if any(file.name.removesuffix(".gz").endswith((".train.inter", ".test.inter")) for file in others):
            found += ", or join the parts of a data set that was split before into one file"
        raise FileNotFoundError(f"{path}: {looked}; {found}")
    return (present or others)[0]


def _read_items(folder: Path, name: str) -> Table | None:
    """The item file, if there is one."""
    from metarec.data.table import read_table

    files = [file for file in (folder / f"{name}.item", folder / f"{name}.item.gz") if file.is_file()]
    return read_table(files[0]) if files else None


def _attributes(table: Table | None, items: Vocabulary) -> dict[str, list[str]]:
    """The item file's columns other than features, one string per item of the vocabulary."""
    from metarec.data.features import by_item

    if table is None:
        return {}
    names = [name for name, kind in table.types.items() if kind != "float_seq" and name != "item_id"]
    return by_item(table.ids("item_id"), {name: table.column(name, table.types[name]) for name in names}, items)


def _modalities(
    wanted: Sequence[str] | Mapping[str, str | Path], folder: Path, dataset: str, items: Vocabulary, table: Table | None
) -> tuple[dict[str, Modality], dict[str, int]]:
    """The modalities asked for, and what did not fit."""
    from metarec.data.features import align, load_modality, table_features
    from metarec.data.table import Table

    found: dict[str, Modality] = {}
    dropped: dict[str, int] = {}
    for name in wanted:
        source = Path(wanted[name]) if isinstance(wanted, Mapping) else _find_features(name, folder, dataset, table)
        if isinstance(source, Table):
            found[name], counts = align(name, table_features(source, name), items)
        else:
            found[name], counts = load_modality(name, source, items)
        dropped |= counts
    return found, dropped


def _learned(
    names: Sequence[str], table: Table | None, attributes: Mapping[str, Sequence[str]], modalities: Mapping[str, object]
) -> tuple[dict[str, Encoding], dict[str, Modality]]:
    """How the attributes are encoded that are to be learned from, and the modality that they make."""
    from metarec.data.attributes import ATTRIBUTES, Column, fit_encodings

    if isinstance(names, str):
        raise ValueError(f"attributes must be names, got the string {names!r}; write ({names!r},)")
    if not names:
        return {}, {}
    if ATTRIBUTES in modalities:
        raise ValueError(f"modalities: {ATTRIBUTES!r} is the one that attributes= makes; give yours another name")
    if table is None or not set(names) <= set(attributes):
        lacking = next(name for name in names if name not in attributes)
        raise ValueError(f"attributes: no column {lacking!r} in an item file; it has {sorted(attributes)}")
    separators = {name: " " if table.types[name] == "token_seq" else "" for name in names}
    columns = {name: Column(attributes[name], table.types[name] == "float", separators[name]) for name in names}
    encodings, modality = fit_encodings(columns, str(table.path))
    return encodings, {modality.name: modality}


def _profiles(names: Sequence[str] | Mapping[str, Encoding], path: Path, users: Vocabulary) -> Profiles | None:
    """What the user file says, if it is asked."""
    from metarec.data.attributes import encoded
    from metarec.data.features import by_item, encode
    from metarec.data.profiles import Profiles
    from metarec.data.table import read_table

    if not names:
        return None
    table = read_table(
        path if path.is_file() or not path.with_name(f"{path.name}.gz").is_file() else path.with_name(f"{path.name}.gz")
    )
    ids = table.unique_ids("user_id")
    known = encode(ids, users) > 0
    columns = {name: table.column(name, table.types[name]) for name in table.types if name != "user_id"}
    texts = by_item(ids.filter(known), {name: column.filter(known) for name, column in columns.items()}, users)
    if isinstance(names, Mapping):
        return Profiles(names, encoded(names, {name: texts[name] for name in names}).features)
    encodings, made = _learned(names, table, texts, {})
    return Profiles(encodings, made["attributes"].features)


def _find_features(name: str, folder: Path, dataset: str, table: Table | None) -> Path | Table:
    """The feature file of a modality, or the item file if that holds it."""
    names = [*(f"{name}.{end}" for end in ARRAYS), f"{dataset}.{name}", f"{name}.item", f"{name}.tsv"]
    for file in names:
        if (folder / file).is_file():
            return folder / file
    if table is not None and table.types.get(name) == "float_seq":
        return table
    raise FileNotFoundError(
        f"{folder}: no features for modality {name!r}; looked for {', '.join(names)} and a column {name}:float_seq in "
        f"{dataset}.item; or pass modalities={{{name!r}: 'path/to/file'}}"
    )
