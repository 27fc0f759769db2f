"""Search a SASRec's width, dropout and learning rate with Optuna, on the validation users inside upstream.

Usage::

    pip install optuna
    python examples/search.py 20        # trials
"""

import sys

import optuna

import metarec as mr
from metarec.recipes import sasrec, validated, validation_split

EPOCHS = 30  # of a trial, at most


def search(upstream: mr.Dataset, *, trials: int, epochs: int = EPOCHS) -> optuna.Study:
    """Trials that fall behind are pruned; the others note after how many epochs they were best."""
    earlier, later = validation_split(upstream)

    def objective(trial: optuna.Trial) -> float:
        width, dropout = trial.suggest_int("dim", 16, 64, step=16), trial.suggest_float("dropout", 0.0, 0.5)
        learner = sasrec.build(earlier, dim=width, dropout=dropout)
        training = sasrec.train(learner, earlier, epochs=epochs, lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        best = 0.0
        for step in validated(training, learner, later):
            if step.metrics:
                trial.report(step.metrics["ndcg@10"], step.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
                if step.metrics["ndcg@10"] > best:
                    best = step.metrics["ndcg@10"]
                    trial.set_user_attr("epochs", step.epoch)
        return best

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return study


def main(data: mr.Dataset, trials: int) -> mr.Report:
    """Search, train the best once more on the whole upstream side, and only then look at the users after it."""
    up, down = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    best = search(up, trials=trials).best_trial
    learner = sasrec.build(up, dim=best.params["dim"], dropout=best.params["dropout"])
    for _ in sasrec.train(learner, up, epochs=best.user_attrs["epochs"], lr=best.params["lr"]):
        pass
    return mr.evaluate(learner, down)


if __name__ == "__main__":
    print(main(mr.datasets.movietweetings(), int(sys.argv[1])))
