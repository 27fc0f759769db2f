from pathlib import Path

import metarec as mr
from metarec.data import find_modalities

folder = Path("../data/shop")
print(find_modalities(folder))
data = mr.load_atomic(folder, modalities=("image", "text"))
print(data)
print(data.dropped)
print(data.catalog.attributes["title"][:3])

up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.3))
print(up.users.decode(up.user_codes), down.users.decode(down.user_codes))
print("cold items:", data.catalog.items.decode(up.cold_items))

model = mr.MML.build(up, mr.MMLConfig(dim=8, layers=1, fusion_users=0.3))
steps = list(mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=0)))
print(f"{len(steps)} steps of training, the last one: {steps[-1].stage}")
print([item.id for item in mr.Recommender(model).adapt(["mug", "teapot"]).recommend(k=3)])
