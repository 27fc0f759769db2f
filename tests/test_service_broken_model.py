"""A model whose scores are no numbers is a fault of the service, not of its clients."""

from __future__ import annotations

import logging

import pytest
import torch

from metarec.recipes import MML
from metarec.recommender import Recommender
from service_helpers import ask, running
from tiny import TWO_LEARNERS, UP

CLICKS = ["item3", "item9"]
TEXT = "the model's scores are not finite; see the log of the service"


@pytest.mark.parametrize("path", ["/recommend", "/recommend/users"])
@pytest.mark.parametrize("part", ["fusion.bias", "learners.text.encoder.position"])
def test_scores_that_are_not_finite_are_500_and_logged(
    path: str, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"clicks": CLICKS} if path == "/recommend" else {"users": [{"clicks": CLICKS}, {"clicks": ["item7"]}]}
    recommender = Recommender(MML.build(UP, TWO_LEARNERS))
    monkeypatch.setattr(logging.getLogger("metarec.service"), "error", logging.getLogger("heard").error)
    with running(recommender) as port:
        assert ask(port, path, body)[0] == 200
        with torch.no_grad():
            recommender.model.get_parameter(part).fill_(torch.nan)  # type: ignore[attr-defined]
        assert ask(port, path, body) == (500, {"error": TEXT})
        assert ask(port, path, {**body, "k": 0})[0] == 422
        assert ask(port, "/health")[0] == 200
    assert "not finite" in caplog.text
