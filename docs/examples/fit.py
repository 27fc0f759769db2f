import metarec as mr

data = mr.datasets.planted(users=300, items=60)  # people who follow rules of their own
up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
model = mr.fit(up, budget=0.25)
print(model.report)
print(mr.evaluate(model, down, k=(10,)))
