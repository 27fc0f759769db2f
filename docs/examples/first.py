import metarec as mr

data = mr.datasets.planted(
    users=400, items=60, adaptation=0.5
)  # a synthetic world; your own: mr.load_atomic("dataset/mine")
up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)  # known users, and users who come later
print(data, f"{len(up.user_codes)} users upstream, {len(down.user_codes)} cold users", sep="\n")

model = mr.MML.build(up, mr.MMLConfig(dim=32, layers=1, lr=5e-3, users_per_batch=32, fusion_epochs=5))
for step in mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=0), epochs=4):
    if step.epoch == step.epochs and step.epoch_done:
        print(f"{step.stage}: loss {step.loss:.2f}")

print(mr.evaluate(model, down, k=(5, 10)))
me = mr.Recommender(model).adapt(["item3", "item14", "item15"])  # three clicks of someone new
print(me.recommend(k=3))
