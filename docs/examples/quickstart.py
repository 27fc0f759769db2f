import metarec as mr

data = mr.datasets.movietweetings()
up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
for side in (up, down):
    print(side)
print(f"{len(up.cold_items)} films are cold: nobody upstream has rated them")

quick = {"warmup_epochs": 3, "generator_epochs": 1, "fusion_epochs": 3}
config = mr.MMLConfig(modalities=("text",), dim=32, layers=1, **quick)
model = mr.MML.build(up, config, seed=0)
sampler = mr.EpisodeSampler(up, seed=0).for_users(up.user_codes[::10])  # every tenth user
steps = list(mr.recipes.mml.train(model, sampler))
print(f"{len(steps)} steps of training, the last one: {steps[-1].stage}")

for method in (mr.Popularity(up), model):
    print(mr.evaluate(method, down, k=(10, 20)))

title = dict(zip(data.catalog.items.ids, data.catalog.attributes["title"], strict=True))
# The Matrix, Inception, Alien
me = mr.Recommender(model).adapt(["0133093", "1375666", "0078748"])
print(*(title[item.id] for item in me.recommend(k=5)), sep="\n")
print({name: round(weight, 2) for name, weight in me.weights.items()})
