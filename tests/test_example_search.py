"""The search of a SASRec's settings: what it says is best is best, and nobody after the split is looked at."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from example_files import load_script
from fit_worlds import sides
from metarec.data import Dataset
from metarec.recipes import sasrec, validated, validation_split
from optional import imported

SCRIPT = Path(__file__).parents[1] / "examples" / "search.py"
WORLD, UP, DOWN = sides(users=150)
pytestmark = pytest.mark.skipif(imported("optuna") is None, reason="no Optuna here")


@pytest.fixture
def script() -> ModuleType:
    return load_script(SCRIPT)


def test_the_best_trial_is_reached_again_by_its_settings(script: ModuleType) -> None:
    study = script.search(UP, trials=8, epochs=4)
    best = study.best_trial
    assert best.value == max(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    earlier, later = validation_split(UP)
    learner = sasrec.build(earlier, dim=best.params["dim"], dropout=best.params["dropout"])
    training = sasrec.train(learner, earlier, epochs=best.user_attrs["epochs"], lr=best.params["lr"])
    *_, last = validated(training, learner, later)
    assert last.metrics["ndcg@10"] == best.value


def test_it_trains_on_upstream_alone_until_the_evaluation(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Dataset] = []
    train = sasrec.train
    monkeypatch.setattr(
        script.sasrec, "train", lambda model, data, **how: seen.append(data) or train(model, data, **how)
    )
    monkeypatch.setitem(script.search.__kwdefaults__, "epochs", 2)
    report = script.main(WORLD, 2)
    assert len(seen) == 3
    assert max(data.time.max() for data in seen) < min(DOWN.time)
    assert not np.isin(report.user, np.concatenate([data.user_codes for data in seen])).any()
