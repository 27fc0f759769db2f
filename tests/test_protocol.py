"""What keeps an evaluation honest: information sets, several positions, clustered errors, paired bootstrap."""

import itertools
import math

import numpy as np
import pytest

from evaluation_worlds import ITEMS, Neighbours, clicks_of, make_data, scored
from metarec.comparison import compare
from metarec.data.examples import leave_last_out
from metarec.evaluation import evaluate
from metarec.report import Report, results_table
from metarec.types import Examples, Scorer


class Declared(Neighbours):
    """Neighbours that declare what they know."""

    def __init__(self, information: str, fitted_until: float | None = None) -> None:
        self.information, self.fitted_until = information, fitted_until


def reports(*information: str) -> dict[str, Report]:
    return {f"{i} {kind}": evaluate(Declared(kind), make_data()) for i, kind in enumerate(information)}


def report(user: list[int], rank: list[float], **info: object) -> Report:
    return Report(np.array(user), np.array(user), np.array(rank), np.array(user) > 2, k=(10,), info=info)


def test_a_figure_says_what_its_method_could_know() -> None:
    found = reports("live")["0 live"]
    assert found.information == "live" == found.to_dict()["info"]["information"]  # type: ignore[index]
    assert str(found).splitlines()[0].endswith("users, information: live")
    assert results_table({"a": found}).startswith("method (live)")
    silent = evaluate(Neighbours(), make_data())
    assert silent.information == "later" and "information: later" in str(silent)
    with pytest.raises(ValueError, match=r"Declared: information.* \['upstream', 'live', 'later'\], got"):
        evaluate(Declared("everything"), make_data())


@pytest.mark.parametrize("pair", list(itertools.permutations(["upstream", "live", "later"], 2)))
def test_methods_of_different_information_are_never_compared(pair: tuple[str, str]) -> None:
    both = reports(*pair)
    message = rf"could know the same, got {pair[0]}: 0 {pair[0]}; {pair[1]}: 1 {pair[1]}"
    with pytest.raises(ValueError, match=message):
        results_table(both)
    with pytest.raises(ValueError, match=rf"got {pair[0]}: .*; {pair[1]}: "):
        compare(*both.values())


@pytest.mark.parametrize("information", ["upstream", "live"])
def test_a_method_fitted_on_later_clicks_of_cold_users_is_refused_or_marked(information: str) -> None:
    data = make_data()
    start = float(data.time.min())
    assert evaluate(Declared(information, start - 1), data).info["fitted_until"] == start - 1
    with pytest.raises(ValueError, match=r"Declared .*clicks.* 0\.0, .*begins.* 0: .*'later'"):
        evaluate(Declared(information, start), data)
    marked = evaluate(Declared("later", start + 5), data)
    assert (marked.information, marked.info["fitted_until"]) == ("later", start + 5)


def test_several_positions_are_those_of_a_loop_over_shortened_users() -> None:
    data, method, expected = make_data(), Neighbours(), []
    for user, all_clicks in clicks_of(data):
        for taken in range(3):
            clicks = all_clicks[: len(all_clicks) - taken]
            if len(clicks) < 4:
                continue
            *history, target = clicks
            scores = method.table[history[-1]].clone()
            for item in clicks[1:-2]:
                scores[item] += 100
            rivals = set(range(1, ITEMS + 1)) - {target}
            better = sum(float(scores[i] > scores[target]) + 0.5 * float(scores[i] == scores[target]) for i in rivals)
            expected.append((user, target, 1 + better))
    found = evaluate(method, data, positions=3)
    assert list(zip(found.user.tolist(), found.target.tolist(), found.rank.tolist(), strict=True)) == expected
    users = len(set(found.user.tolist()))
    assert f"{users} users, {len(expected)} clicks" in str(found)
    assert len(evaluate(method, data, positions=99)) == sum(max(0, len(c) - 3) for _, c in clicks_of(data))
    with pytest.raises(ValueError, match=r"positions .*least 1, got 0"):
        evaluate(method, data, positions=0)


@pytest.mark.parametrize(("clicks", "least"), [(0, 4), (1, 1), (1, 4), (3, 2), (20, 1)])
def test_clicks_that_have_not_come_yet_are_taken_from_the_end(clicks: int, least: int) -> None:
    data = make_data()
    rest = {user: own[: len(own) - clicks] for user, own in clicks_of(data)}
    kept = {user: own for user, own in rest.items() if not clicks or len(own) >= least}
    assert dict(clicks_of(leave_last_out(data, clicks, least=least))) == {u: own for u, own in kept.items() if own}


@pytest.mark.parametrize("clicks", [1, 2, 5])
def test_histories_cut_to_their_last_clicks(clicks: int) -> None:
    seen = {}

    class Watching:
        def adapt(self, support: Examples) -> Scorer:
            def score(examples: Examples) -> object:
                for row in range(len(examples)):
                    history = examples.history[row, : int(examples.position[row, 0]) + 1].tolist()
                    adapted = support.target[row][support.weight[row] > 0].tolist()
                    seen[tuple(history), int(examples.target[row, 0])] = adapted
                return scored(Neighbours.table[examples.history.gather(1, examples.position)])

            return score  # type: ignore[return-value]

    data = make_data()
    evaluate(Watching(), data, part="serving", max_length=clicks)
    expected = {(tuple(own[:-1][-clicks:]), own[-1]): own[:-1][-clicks:][1:] for _, own in clicks_of(data)}
    assert seen == expected


def test_standard_errors_take_the_clicks_of_a_user_as_one_draw() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(1, 31), rng.integers(1, 6, 30))
    rank = rng.integers(1, 15, len(user)).astype(float)
    found = Report(user, user, rank, user > 99, k=(10,)).metrics["mrr@10"]
    values = np.where(rank <= 10, 1 / rank, 0)
    assert found.mean == pytest.approx(values.mean())
    sums = np.array([(values[user == u] - values.mean()).sum() for u in range(1, 31)])
    assert found.se == pytest.approx(math.sqrt(30 / 29 * (sums**2).sum()) / len(values))
    draws = [rng.integers(0, 30, 30) + 1 for _ in range(4000)]
    means = [np.concatenate([values[user == u] for u in draw]).mean() for draw in draws]
    assert found.se == pytest.approx(np.std(means), rel=0.08)  # the bootstrap of users says the same


def test_a_paired_bootstrap_is_that_of_a_loop_over_draws_of_users() -> None:
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(1, 21), rng.integers(1, 4, 20))
    ours = [Report(user, user, rng.integers(1, 14, len(user)).astype(float), user > 12, k=(10,)) for _ in range(2)]
    theirs = Report(user, user, rng.integers(1, 18, len(user)).astype(float), user > 12, k=(10,))
    for cold in (False, True):
        found = compare(ours, theirs, "recall@10", cold=cold, resamples=300, seed=4, level=0.9)
        rows = user > 12 if cold else user > 0
        people = np.unique(user[rows])
        a = ((ours[0].rank <= 10) * 0.5 + (ours[1].rank <= 10) * 0.5)[rows]
        b = (theirs.rank <= 10)[rows] * 1.0
        draws = np.random.default_rng(4).multinomial(len(people), np.full(len(people), 1 / len(people)), size=300)
        gains, ratios = [], []
        for draw in draws:
            index = np.concatenate([np.flatnonzero(user[rows] == person) for person in np.repeat(people, draw)])
            gains.append(a[index].mean() - b[index].mean())
            ratios.append(a[index].mean() / b[index].mean() - 1)
        gains.sort(), ratios.sort()
        assert (found.gain_low, found.gain_high) == pytest.approx((gains[14], gains[284]))
        assert (found.interval_low, found.interval_high) == pytest.approx((ratios[14], ratios[284]))
        assert (found.method, found.baseline) == pytest.approx((a.mean(), b.mean()))
        assert found.relative_gain == pytest.approx(a.mean() / b.mean() - 1)
        assert (found.users, found.information) == (len(people), "upstream")


def test_what_cannot_be_paired_is_refused_and_zero_is_no_number_to_divide_by() -> None:
    one = report([1, 2, 3], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"different clicks \(3 and 2 rows\)"):
        compare(one, report([1, 2], [1.0, 2.0]))
    with pytest.raises(ValueError, match="at least one report"):
        compare([], one)
    with pytest.raises(ValueError, match="no click is left"):
        compare(report([1, 2], [1.0, 1.0]), report([1, 2], [1.0, 1.0]), cold=True)
    with pytest.raises(ValueError, match=r"no metric 'ndcg': expected one of \['recall', 'mrr', 'ndcg'\]"):
        compare(one, one, "ndcg")
    nothing = report([1, 2, 3], [11.0, 12.0, 13.0])
    assert compare(one, nothing).to_dict()["relative_gain"] is None
    assert compare(nothing, nothing).relative_gain == 0
