import pandas as pd

import metarec as mr

orders, products = (pd.read_csv(f"../data/frames/{name}.csv") for name in ("orders", "products"))
data = mr.Dataset.from_frame(orders, products, attributes=["category", "price"], time="ordered_at")
model = mr.recipes.sasrec.build(data, ("id", "attributes"), dim=8, drop_inputs=0.5)
list(mr.recipes.sasrec.train(model, data, epochs=40))
recommender = mr.Recommender(model)
jug = {"title": ["Milk jug"], "category": ["kitchen"], "price": [19.0]}
recommender.add_items([600], attributes=jug)  # nobody has bought it yet
print(recommender.adapt([[501, 502]]).recommend(k=10).to_frame())
