import metarec as mr

# A synthetic world. Yours would be mr.load_atomic("dataset/mine").
data = mr.datasets.planted(users=1000, items=60, adaptation=0.5)
up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
print(up, down, sep="\n")

config = mr.MMLConfig(dim=32, layers=1, lr=5e-3, users_per_batch=32, fusion_epochs=3)
model = mr.MML.build(up, config)
for step in mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=0), epochs=2):
    if step.epoch == step.epochs and step.epoch_done:
        print(f"{step.stage}: loss {step.loss:.2f}")
print(mr.evaluate(model, down, k=(5, 10)))

# Three clicks of someone new.
me = mr.Recommender(model).adapt(["item3", "item14", "item15"])
print(me.recommend(k=3))
