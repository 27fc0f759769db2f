"""How many: any type of whole numbers from 1 on; anything else is refused before anybody is left out."""

import numpy as np
import pytest
import torch

from metarec import MML, Recommender
from tiny import CONFIG, UP

USERS = [["item3", "item14"], ["item7", "item8"]]


@pytest.fixture(scope="module")
def recommender():
    return Recommender(MML.build(UP, CONFIG))


@pytest.mark.parametrize("users", [0, -1, True, 1.5, "2", None])
def test_pieces_of_a_stream_refuse(recommender, users):
    with pytest.raises(ValueError, match=r"stream: users .* 1, got"):
        next(recommender.stream(USERS, users=users))


@pytest.mark.parametrize("one", [np.int64(1), torch.tensor(1)])
def test_whole_numbers_of_other_libraries(recommender, one):
    assert [piece[0].history for piece in recommender.stream(USERS, users=one)] == [tuple(row) for row in USERS]
    users = recommender.adapt(USERS)
    assert users.recommend(k=one)[1] == users.recommend(k=1)[1]
    assert users[0].recommend(k=one) == users[0].recommend(k=1)
