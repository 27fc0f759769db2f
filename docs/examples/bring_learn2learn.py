import torch
from learn2learn.algorithms import MAML

import metarec as mr

torch.manual_seed(0)
data = mr.datasets.planted(users=60, items=40)
up, _ = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
batch = next(mr.EpisodeSampler(up, seed=0, users_per_batch=8).epoch(0))
items = mr.IdItems(size=up.catalog.size, dim=8)
learner = mr.ModalityLearner(items, mr.SequenceEncoder(dim=8, dropout=0.0)).double()

# learn2learn's own loop, one user after another: the encoder adapts, the items do not.
losses = []
maml = MAML(learner.task_view("encoder"), lr=0.1, first_order=True, allow_unused=True)
for user in range(len(batch)):
    own = maml.clone()
    for _ in range(5):
        own.adapt(own.module.loss(batch.support[user : user + 1]).sum())
    losses.append(own.module.loss(batch.query[user : user + 1]).sum())
one_by_one = torch.stack(losses)

# All users at once: through learn2learn's MAML, and by the library's own loop.
for engine in ("learn2learn", "auto"):
    at_once = mr.MetaLearner(learner, lr=0.1, steps=5, engine=engine).query_loss(batch)
    print(engine, bool(torch.allclose(at_once, one_by_one, atol=1e-12)))
