"""The demo page as Streamlit itself runs it, and in a real browser (`make demo-test`)."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

import metarec as mr

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "new_user_demo.py"
NEW = "The Notebook (2004)"


@pytest.fixture(scope="module")
def model():
    """An untrained model of the real films, moved away from its start so that clicks matter."""
    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    model = mr.MML.build(up, mr.MMLConfig(dim=8, layers=1))
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model.safetensors"
    mr.save(model, path)
    return path


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import new_user_demo

    return new_user_demo


def expected(model, demo, films):
    """The titles that a recommender gives to someone who clicked these."""
    called = demo.titles(model.catalog)
    ids = {title: item for item, title in called.items()}
    user = mr.Recommender(model).adapt([ids[film] for film in films])
    return [called[item.id] for item in user.recommend(k=10)]


def shown(text):
    """Titles of a list as Markdown, without the remarks about the list before."""
    return [re.sub(r" :\w+\[.*\]$", "", line.split(". ", 1)[1]) for line in text.splitlines()]


def strongest(model, demo, films):
    """The click that moved each listed film up most, asked for one film at a time."""
    called = demo.titles(model.catalog)
    ids, recommender = {title: item for item, title in called.items()}, mr.Recommender(model)
    listed = [item.id for item in recommender.adapt([ids[film] for film in films]).recommend(k=10)]
    return [called[recommender.adapt([ids[f] for f in films]).because(item)[0].id] for item in listed]


def named(page):
    """The clicks that the page gives as reasons, in the order of the list."""
    text = next(caption.value for caption in page.caption if "1. " in caption.value)
    return re.split(r",? ?\d+\. ", text)[1:]


def test_picking_a_film_changes_the_list(model, file, demo, monkeypatch):
    from streamlit.testing.v1 import AppTest

    monkeypatch.setattr("sys.argv", ["new_user_demo.py", "--page", str(file)])
    page = AppTest.from_file(str(SCRIPT), default_timeout=60).run()
    assert not page.exception
    usual = [title for title in demo.titles(model.catalog).values() if title in demo.FILMS]
    assert len(usual) == 3 and shown(page.markdown[0].value) == expected(model, demo, usual)
    new = next(item for item, title in demo.titles(model.catalog).items() if title == NEW)
    page.multiselect[0].select(new).run()
    assert shown(page.markdown[0].value) == expected(model, demo, [*usual, NEW])
    assert "(new)" in page.markdown[0].value
    assert named(page) == strongest(model, demo, [*usual, NEW])
    page.multiselect[0].set_value([]).run()
    assert not page.exception and "unadapted" in page.subheader[0].value


def test_shares_are_the_weights_among_the_learners_that_know_an_item(model, demo):
    recommender = mr.Recommender(model)
    items = recommender.catalog.items.ids
    user = recommender.adapt(items[:3])
    shares = demo.shares(model, user.weights, items)
    assert shares.shape == (len(items), 3)
    np.testing.assert_allclose(shares.sum(1), 1)
    text = model.catalog["text"].present[1:].numpy()
    assert (shares[~text, recommender.learners.index("text")] == 0).all()
    everywhere = np.logical_and.reduce([model.learner(n).items.known[1:].numpy() for n in recommender.learners])
    np.testing.assert_allclose(shares[everywhere][0], list(user.weights.values()), rtol=1e-5)


def test_moved(demo):
    assert [demo.moved(i, n, ["a", "b"]) for n, i in enumerate("acb", 1)] == ["", " :green[(new)]", " :gray[(was 2)]"]
    assert demo.moved("a", 1, None) == ""


def test_no_such_model(demo, tmp_path):
    with pytest.raises(SystemExit, match=r"new_user_demo: .*file"):
        demo.main(["--model", str(tmp_path / "gone")])


@pytest.fixture
def address(file):
    """The demo as a user starts it."""
    port = 18501
    command = [sys.executable, str(SCRIPT), "--model", str(file), "--port", str(port), "--no-browser"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT) as server:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert server.poll() is None
            try:
                urlopen(f"{url}/_stcore/health").read()
                break
            except URLError:
                time.sleep(0.1)
        yield url
        server.terminate()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    quiet = "quic first-run background-networking component-update sync"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
    flags += ["--no-first-run" if name == "first-run" else f"--disable-{name}" for name in quiet.split()]
    for flag in [*flags, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.mark.browser
def test_in_a_real_browser(model, demo, address, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def listed(_=None):
        entries = browser.find_elements(By.CSS_SELECTOR, "ol li")
        return [re.sub(r" \((new|was \d+)\)$", "", entry.text) for entry in entries]

    usual = [title for title in demo.titles(model.catalog).values() if title in demo.FILMS]
    before, after = expected(model, demo, usual), expected(model, demo, [*usual, NEW])
    browser.get(address)
    wait = WebDriverWait(browser, 120, ignored_exceptions=[Exception])
    wait.until(lambda _: listed() == before)
    wait.until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "[data-testid=stVegaLiteChart] canvas, .vega-embed svg")
    )
    box = browser.find_element(By.CSS_SELECTOR, "[data-testid=stMultiSelect] input")
    box.send_keys(NEW)
    box.send_keys(Keys.ENTER)
    wait.until(lambda _: listed() == after)
    time.sleep(1)  # the picture is drawn after the list
    picture = Path(os.environ.get("DEMO_SCREENSHOT", tmp_path / "demo.png"))
    assert browser.save_screenshot(str(picture)) and picture.stat().st_size > 20_000
