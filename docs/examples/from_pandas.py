import pandas as pd

import metarec as mr

orders, products, vectors = (pd.read_csv(f"../data/frames/{name}.csv") for name in ("orders", "products", "vectors"))
data = mr.Dataset.from_frame(orders, products, features={"text": vectors}, time="ordered_at")
up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.3))
model = mr.MML.build(up, mr.MMLConfig(dim=8, layers=1, fusion_users=0.3))
list(mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=0)))
print(mr.Recommender(model).adapt([[501, 502]]).recommend(k=10).to_frame())
