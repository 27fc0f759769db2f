"""The tables and lists of the pages, made from the committed results at each build; no figure of theirs is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from results import KNOWS, QUALITY, RESULTS, against, gain, number, plus_minus, read, standings, title, verdict


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def listed(words: Iterable[str]) -> str:
    """Words as one."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def protocol() -> str:
    """Whom the figures are about."""
    found = read(QUALITY)
    splits = found["split"] if isinstance(found["split"], list) else [found["split"]]
    users = listed(f"{s['cold_users']:,} after {s['upstream_users']:,} others" for s in splits)
    where = "a split in time" if len(splits) == 1 else f"{len(splits)} splits in time, pooled"
    seeds = max(s.seeds for s in standings("upstream"))
    cold = found["methods"][0]["cold_users"]
    return (
        f"MovieTweetings, {where}. Cold users: {users}; {cold:,} next films are cold. {seeds} seeds. Every film that "
        "the user has not rated is ranked. ± is the standard error over users; intervals are of paired differences, "
        "at 95%.\n"
    )


def headlines() -> str:
    """What was fixed beforehand as ours, against the best baseline of each information set."""
    return bullets(f"{row['information']}, {title(row['metric'])}: {against(row)}" for row in read(QUALITY)["headline"])


def controls() -> str:
    """Ours against the same fusions of learners that are not meta-learned, where they ran."""
    rows = read(QUALITY).get("controls", [])
    lines = bullets(f"{row['information']}, {title(row['metric'])}: {against(row)}" for row in rows)
    return f"The same fusions with plain learners in the place of MML's:\n\n{lines}" if rows else ""


def splits() -> str:
    """The same where the split in time lies elsewhere, each alone and all pooled."""
    found = read(f"{QUALITY}_splits")
    rows = [(f"{part['cold_users']:.0%} of the users", row) for part in found["splits"] for row in part["headline"]]
    rows += [("all pooled", row) for row in found["headline"]]
    head = ("after the split", "knows", "metric", "ours", "best baseline", "difference")
    cells = [
        (at, row["information"], title(row["metric"]), number(row["mml"]), number(row["baseline"]), gain(row))
        for at, row in rows
    ]
    return f"The same with the split elsewhere, one seed:\n\n{table(head, cells)}"


def elsewhere() -> str:
    """The same on other data."""
    parts = []
    for path in sorted(RESULTS.glob("quality_*.json")):
        if path.stem not in (QUALITY, f"{QUALITY}_splits", "quality_scouting"):
            found = read(path.stem)
            users = listed(f"{split['cold_users']:,}" for split in found["split"])
            lines = bullets(
                f"{row['information']}, {title(row['metric'])}: {against(row)}" for row in found["headline"]
            )
            parts.append(f"{found['dataset']}, {users} cold users:\n\n{lines}")
    return "\n".join(parts)


def cold_items() -> str:
    """Ours against the best baseline where the next item is cold, and what that costs or gives all users."""
    lines = []
    for row in read(QUALITY)["cold_items"]:
        rest = row["all_users_against"]
        both = f"{number(rest['method'])} with generators, {number(rest['baseline'])} without: {gain(rest)}"
        lines += [
            f"{row['information']}, the next item is cold: {against(row)}",
            f"{row['information']}, all users, beside a fusion of plain learners: {both}. "
            f"**{verdict(rest, 'The generators win', 'The plain learners win')}**",
        ]
    return bullets(lines)


def ranking(information: str) -> str:
    """All methods that knew the same, best first."""
    rows = [
        (
            f"**{s.method}**" if s.ours else s.method,
            plus_minus(s.values["ndcg@10"]),
            plus_minus(s.values["recall@10"]),
            plus_minus(s.cold["ndcg@10"]),
        )
        for s in standings(information)
    ]
    return KNOWS[information] + ".\n\n" + table(("method", "NDCG@10", "Recall@10", "NDCG@10, cold next item"), rows)


def later() -> str:
    """The methods that learned from what nobody could know in time, if any ran."""
    return ranking("later") if standings("later") else "No such method ran.\n"


def adaptation() -> str:
    """What the inner steps give a new user, by the clicks known."""
    rows = [
        (
            str(row["clicks"]),
            number(row["baseline"]),
            number(row["method"]),
            gain(row),
            verdict(row, "Adapting wins", "The shared weights win"),
        )
        for row in read(QUALITY)["adaptation_always"]
    ]
    return table(("clicks known", "0 steps", "adapted", "difference", ""), rows)


def not_shown() -> str:
    """What did not work: every comparison of ours that no interval supports."""
    found = read(QUALITY)
    lines = [
        f"{row['information']}, {title(row['metric'])}{kind}: "
        f"*{row['method']}* over *{row['best_baseline']}*, {gain(row)}"
        for kind, part in (("", "headline"), ("", "controls"), (", cold next item", "cold_items"))
        for row in found.get(part, [])
        if row["gain_low"] <= 0
    ]
    steps = [row for row in found["adaptation_always"] if row["gain_low"] <= 0]
    if steps:
        worst = min(steps, key=lambda row: row["gain_high"])
        lines.append(
            f"Inner steps for a new user: no gain is shown with {listed(str(row['clicks']) for row in steps)} clicks; "
            f"at worst they give {gain(worst)}, with {worst['clicks']}"
        )
    new = new_items("ndcg@10")
    if best(new) == "nearest by features":
        lines.append(f"A new item in one list of all items: NDCG@10 {figures(new)}")
    tried = len(found["tried"])
    lines.append(f"{tried} configurations were tried; the file lists each with its figures")
    return bullets(f"{line}." for line in lines)


def new_items(metric: str) -> dict[str, float]:
    """A metric of new items, by what ranks them."""
    methods = read("new_items")["methods"]
    return {name: methods[name][metric]["mean"] for name in methods if name not in ("random", "not rankable")}


def best(values: Mapping[str, float]) -> str:
    """The name of the largest value."""
    return max(values, key=values.__getitem__)


def figures(values: Mapping[str, float]) -> str:
    """Values with what they are of, the largest first."""
    return ", ".join(
        f"{number(values[name])} by {name}" for name in sorted(values, key=values.__getitem__, reverse=True)
    )


def choose() -> str:
    """What to take when, each with the figure that says so."""
    live, upstream = standings("live")[0], standings("upstream")[0]
    *_, cold = sorted(standings("upstream"), key=lambda s: s.cold["ndcg@10"])
    simple = next(s for s in standings("upstream") if s.method == "popularity, all")
    alone, whole = new_items("recall@10 among new items"), new_items("recall@10")
    speed = {name: read(f"peers_{name}")["times_slower_than_metarec"] for name in ("cpu", "h200")}
    rows = (
        ("You can count clicks up to this moment", live.method, f"NDCG@10 {plus_minus(live.values['ndcg@10'])}"),
        ("You cannot", upstream.method, f"NDCG@10 {plus_minus(upstream.values['ndcg@10'])}"),
        (
            "The next item is likely to be new, and you cannot count clicks",
            cold.method,
            f"NDCG@10 {plus_minus(cold.cold['ndcg@10'])} where it is; popularity {number(simple.cold['ndcg@10'][0])}",
        ),
        ("Items arrive after training, for a list of new items", best(alone), f"Recall@10 {figures(alone)}"),
        ("The same, for one list of all items", best(whole), f"Recall@10 of new items {figures(whole)}"),
        (
            "You meta-train on many users",
            "metarec's batched loop",
            f"{speed['cpu']['learn2learn']:,.0f} times learn2learn's loop on two cores, "
            f"{speed['h200']['learn2learn']:,.0f} times on a GPU",
        ),
    )
    return table(("your case", "take", "because"), rows)


def speeds() -> str:
    """The inner loop in every usual way, and the meta-test over whole catalogues."""
    lines = []
    for name, place in (("peers_cpu", "Two CPU cores"), ("peers_h200", "One H200")):
        found = read(name)
        rest = [
            f"{way} is {x:,.{1 if x < 10 else 0}f} times slower"
            for way, x in found["times_slower_than_metarec"].items()
            if x > 1
        ]
        lines.append(
            f"{place}, {found['settings']['users']:,} users at once: **metarec meta-trains "
            f"{found['users_per_second']['metarec']:,.0f} users/s**; {listed(rest)}"
        )
    for name in ("meta_test_h200", "meta_test_million_h200"):
        found = read(name)
        what = found["settings"]
        lines.append(
            f"One H200: {what['users']:,} cold users take {what['steps']} steps of all weights and are ranked over "
            f"{what['items']:,} items in {found['seconds']:.1f} s, with {found['peak_bytes'] / 2**30:.1f} GiB"
        )
    return bullets(f"{line}." for line in lines)


def serving() -> str:
    """One user, many, and the web service, as far as they were measured on two cores."""
    found, parts = read("serving_cpu"), []
    if "one_by_one_users_per_second" in found:
        items = next(run["settings"]["items"] for part, run in found["runs"].items() if part.startswith("one"))
        parts += [
            f"One new user is adapted to and gets a list over {items:,} items in "
            f"{found['adapt_recommend_p50_ms']:.1f} ms (p50; p99 {found['adapt_recommend_p99_ms']:.1f} ms).",
            "```{picture} served\n:alt: Bars of users served per second on a CPU: one by one, and above that in bulk.\n"
            "From `serving_cpu.json`: the default recipe, users of 3 to 20 clicks.\n```",
        ]
    if (RESULTS / "service_cpu.json").exists():
        levels = read("service_cpu")["levels"]
        speeds = listed(f"{level['requests_per_second']:,.0f} with {level['clients']}" for level in levels)
        wrong = sum(level["wrong"] + level["lost"] for level in levels)
        parts += [
            f"The web service answers so many requests per second, by clients that ask at once: {speeds}; "
            f"{wrong} answers were wrong or lost.",
            "```{picture} service\n:alt: Bars of milliseconds until an answer, by clients that ask at once; "
            "more clients wait longer, and the slowest hundredth longer than the middle.\n"
            "From `service_cpu.json`: clients and server share two cores.\n```",
        ]
    return "\n\n".join(parts) + "\n"


def parity() -> str:
    """Our baselines beside those of another library on the same clicks."""
    found = read("parity")
    what = found["data"]
    rows = [
        (name, title(row["metric"]), number(row["method"]), number(row["baseline"]), gain(row))
        for name, compared in found["comparisons"].items()
        for row in compared
    ]
    said = f"On {what['name']}, {what['users']:,} users, beside RecTools {found['rectools']}:"
    return f"{said}\n\n{table(('method', 'metric', 'ours', 'theirs', 'difference'), rows)}"


def sources() -> str:
    """All committed results: where, when and from which commit."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = read(path.stem)
        machine = found.get("machine", {})
        where = machine.get("device", "-") if machine.get("cuda") else f"{machine.get('cpu', '-')}"
        commit, _, dirty = str(found.get("commit", "")).partition("-")
        state = (commit[:8] or "-") + (" and changes" if dirty else "")
        rows.append((f"`{path.name}`", str(found.get("date", "-"))[:10], state, where))
    return table(("file", "measured", "commit", "machine"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "adaptation": adaptation,
    "choose": choose,
    "cold_items": cold_items,
    "controls": controls,
    "elsewhere": elsewhere,
    "headlines": headlines,
    "later": later,
    "live": lambda: ranking("live"),
    "not_shown": not_shown,
    "parity": parity,
    "protocol": protocol,
    "serving": serving,
    "sources": sources,
    "speeds": speeds,
    "splits": splits,
    "upstream": lambda: ranking("upstream"),
}


def write(folder: Path) -> None:
    """Write every table as a file that pages include."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        (folder / f"{name}.md").write_text(make(), encoding="utf-8")
