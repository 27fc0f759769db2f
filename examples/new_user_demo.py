"""A page on this machine: pick three films, and see what a model makes of you.

    python examples/new_user_demo.py
    python examples/new_user_demo.py --model runs/movietweetings-default-seed0/model.safetensors --port 8501

Wants the extra ``demo``: pip install '.[demo]'. Without --model, a small model is trained first on the MovieTweetings
data that come with metarec, which takes about a minute. The page shows the ten best films, which click moved each up
most, how much of each recommendation comes from the clicked ids, the text and the image, and what the list was before.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import metarec as mr
from metarec.serving.users import User

FILMS = ("The Matrix (1999)", "Inception (2010)", "Alien (1979)")
QUICK = mr.MMLConfig(dim=32, layers=1, warmup_epochs=3, epochs=1, generator_epochs=1, fusion_epochs=10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, see that there is a model, open the page."""
    options = parse(arguments)
    if importlib.util.find_spec("streamlit") is None:
        sys.exit("new_user_demo: streamlit is not installed: pip install '.[demo]'")
    path = options.model or quick_model(Path(tempfile.mkdtemp()) / "model.safetensors")
    try:
        mr.load(path)
    except (OSError, ValueError) as error:
        sys.exit(f"new_user_demo: {error}")
    from streamlit.web import bootstrap

    settings = {
        "server.address": "127.0.0.1",
        "server.port": options.port,
        "server.headless": options.no_browser,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
    }
    bootstrap.load_config_options({name.replace(".", "_"): value for name, value in settings.items()})
    bootstrap.run(str(Path(__file__).resolve()), is_hello=False, args=["--page", str(path)], flag_options={})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", type=Path, metavar="PATH", help="a saved model (default: a quick one is trained)")
    parser.add_argument("--port", type=int, default=8501, help="of the page (default: 8501)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args(arguments)


def quick_model(path: Path) -> Path:
    """A model that is trained in about a minute."""
    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    model = mr.MML.build(up, QUICK)
    with tqdm(mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=0)), unit=" steps") as steps:
        for step in steps:
            steps.set_description(step.stage)
    mr.save(model, path)
    return path


def titles(catalog: mr.Catalog) -> dict[str, str]:
    """What each item is called: its title where the item file has one, else its id."""
    column = next((name for name in catalog.attributes if "title" in name), None)
    names = catalog.items.ids if column is None else catalog.attributes[column]
    return {item: name or item for item, name in zip(catalog.items.ids, names, strict=True)}


def shares(model: mr.MML, weights: Mapping[str, float], items: Sequence[str]) -> NDArray[np.float64]:
    """(items, learners) the weight of each learner for each item: the user's, among the learners that know the item."""
    codes = model.catalog.items.encode(items)
    known = [model.learner(name).items.known[codes].cpu().numpy() for name in weights]
    each = np.array(list(weights.values())) * np.stack(known, 1)
    out: NDArray[np.float64] = each / each.sum(1, keepdims=True)
    return out


def served(path: str) -> tuple[mr.MML, mr.Recommender]:
    """A model and what serves it."""
    model = mr.load(path)
    return model, mr.Recommender(model)


def page(path: Path) -> None:
    """What Streamlit runs, from top to bottom, whenever something is picked."""
    import streamlit as st

    model, recommender = st.cache_resource(served, show_spinner="Loading")(str(path))
    called = titles(recommender.catalog)
    usual = [item for item, title in called.items() if title in FILMS]
    st.set_page_config("metarec: a new user", layout="wide")
    st.title("A new user has clicked three things; what next?")
    clicks = st.multiselect(
        "Films that you like, oldest click first",
        list(called),
        default=usual or list(called)[:3],
        format_func=called.__getitem__,
        key="clicks",
    )
    try:
        user = recommender.adapt(clicks)
        best = user.recommend(k=10)
    except ValueError as error:
        st.error(str(error))
        return
    items = [item.id for item in best]
    before, st.session_state.before = st.session_state.get("before"), items
    listing, picture = st.columns(2)
    with listing:
        st.subheader("For you" if clicks else "Nothing clicked: the unadapted ranking")
        st.markdown("\n".join(f"{n}. {called[item]}{moved(item, n, before)}" for n, item in enumerate(items, 1)))
        if clicks:
            st.caption(f"The click that moved each up most: {reasons(user, items, called)}")
    with picture:
        st.subheader("Where each comes from")
        names = {"id": "who clicked what (ID)"}
        rows = {"film": [f"{n}. {called[item]}" for n, item in enumerate(items, 1)]}
        columns = dict(zip(user.weights, shares(model, user.weights, items).T.tolist(), strict=True))
        chart = rows | {names.get(name, name): values for name, values in columns.items()}
        st.bar_chart(
            chart, x="film", y=list(chart)[1:], horizontal=True, sort=False, height=460, x_label="", y_label="weight"
        )
        weights = ", ".join(f"{name} {weight:.0%}" for name, weight in user.weights.items())
        st.caption(f"Your weights: {weights}. A film that a learner does not know is ranked by the others.")


def reasons(user: User, items: Sequence[str], called: Mapping[str, str]) -> str:
    """The click that moved each item up most, by places."""
    return ", ".join(f"{n}. {called[own[0].id]}" for n, own in enumerate(user.because(items, k=1), 1) if own)


def moved(item: str, place: int, before: Sequence[str] | None) -> str:
    """How an entry stands against the list before."""
    if before is None or (item in before and before.index(item) + 1 == place):
        return ""
    return f" :gray[(was {before.index(item) + 1})]" if item in before else " :green[(new)]"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--page"]:
        page(Path(sys.argv[2]))
    else:
        main()
