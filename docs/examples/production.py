import tempfile
from pathlib import Path

import numpy as np

import metarec as mr
from metarec.data import joining
from metarec.recipes import Ensemble, LivePopularity, sasrec

shop = mr.datasets.planted(users=2000, items=40)
up, down = mr.split_by_time(shop, at=mr.datasets.PLANTED_SPLIT)
learner = sasrec.build(up, ("id", "text"), dim=8)
for _ in sasrec.train(learner, up, epochs=2):
    pass
model = Ensemble({"popular": LivePopularity(up, window=up.day * 14), "SASRec": learner}, up)

# Save and load.
folder = Path(tempfile.mkdtemp())
mr.save(model, folder / "shop.safetensors")
recommender = mr.Recommender.load(folder / "shop.safetensors")

# A new item, and a file that keeps it.
recommender.add_items(["new"], text={"new": np.zeros(up.catalog["text"].features.shape[1])})
recommender.save(folder / "shop.safetensors")
print(len(mr.load(folder / "shop.safetensors").catalog.items), "items")

# What a user clicks while being served.
ann = recommender.adapt(["item3", "item14"])
ann = ann.update(["item9"])
print(ann)

# Everybody's new clicks: counts move on at once, weights by learning on.
last = float(down.time.max())
today = {"user": ["ann", "bob", "bob"], "item": ["item3", "new", "item7"], "time": [last + 1, last + 2, last + 3]}
print(recommender.observe(today))

learned = model.learn(down, before=up)
for name, part in learned.members().items():
    print(name, "taken" if part.learned.taken else part.learned.why, "held out:", part.learned.held_out)

# Yesterday's clicks delivered again: left out, and counted.
again = learned.learn(down, before=joining.followed_by(up, down))
print(dict(again.learned.dropped))

# Rolling back: the old model is as it was, and so is its file under another name.
mr.save(learned, folder / "shop-2.safetensors")
mr.save(model, folder / "shop.safetensors")
