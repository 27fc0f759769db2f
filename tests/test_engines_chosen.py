"""What the recipes build and train takes the fast engines: notes on a module must not keep it from them."""

import copy

import pytest

from metarec.data import EpisodeSampler
from metarec.io import load, save
from metarec.meta import MetaLearner
from metarec.meta.compiled import CompiledUsers
from metarec.meta.vmap import VmapUsers
from metarec.recipes import MML, sasrec
from metarec.recommender import Recommender
from tiny import CONFIG, UP, trained


def read_back(model, folder):
    save(model, folder / "mml")
    return load(folder / "mml")


SUPPORT = next(EpisodeSampler(UP).epoch(0)).support
MODELS = {
    "built": lambda folder: MML.build(UP, CONFIG),
    "trained": lambda folder: trained(),
    "copied": lambda folder: copy.deepcopy(trained()),
    "read back": lambda folder: read_back(trained(), folder),
    "served": lambda folder: Recommender(trained()).model,
}


def engine(meta):
    return type(meta.adapt(SUPPORT, steps=0).stacks[0])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_mml_takes_the_kernel(make, tmp_path):
    model = make(tmp_path)
    metas = [meta for name in model.learners for meta in (model.meta(name), model.training_meta(name))]
    bank = model.eval().bank()
    assert {engine(meta) for meta in (*metas, *bank.models)} == {CompiledUsers}
    assert [numbers for numbers, _ in bank.together] == [list(range(len(model.learners)))] and not bank.alone


def test_a_sasrec_takes_the_kernel_before_and_after_training():
    learner = sasrec.build(UP, dim=8)
    meta = MetaLearner(learner, engine="native")
    assert engine(meta) is CompiledUsers
    for _ in sasrec.train(learner, UP, epochs=1):
        pass
    assert engine(meta) is CompiledUsers


def test_a_note_is_no_alteration_but_a_name_that_the_class_reads_is():
    learner = sasrec.build(UP, dim=8)
    learner.encoder.note = "by hand"
    learner.encoder.blocks[0].note = [1, 2]
    assert engine(MetaLearner(learner, engine="native")) is CompiledUsers
    learner.encoder.blocks[0].forward = learner.encoder.blocks[0].forward
    assert engine(MetaLearner(learner, engine="native")) is VmapUsers
