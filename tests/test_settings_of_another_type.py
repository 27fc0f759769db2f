"""Settings of another type are refused by name, and more names of columns are known as labels."""

import pytest

import metarec as mr


@pytest.mark.parametrize("setting", [{"exclude_seen": "no"}, {"positions": 1.5}, {"positions": "2"}])
def test_evaluate_names_a_setting_of_another_type(setting):
    up, down = mr.split_by_time(mr.datasets.planted(users=60, items=40), at=mr.datasets.PLANTED_SPLIT)
    with pytest.raises(ValueError, match=f"evaluate: {next(iter(setting))} must be"):
        mr.evaluate(mr.Popularity(up), down, **setting)


def test_recommend_names_a_setting_of_another_type():
    recommender = mr.Recommender(mr.MML.build(mr.datasets.planted(users=60, items=40), mr.MMLConfig(dim=8, layers=1)))
    with pytest.raises(ValueError, match="recommend: exclude_seen must be True, False or None, got 'no'"):
        recommender.adapt(["item1", "item2"]).recommend(k=3, exclude_seen="no")


@pytest.mark.parametrize("name", ["target", "y"])
def test_a_label_called_as_models_call_it_is_told(tmp_path, name):
    (tmp_path / "t.inter").write_text(f"user_id:token\titem_id:token\t{name}:float\nu\ta\t0\nu\tb\t1\n")
    with pytest.warns(UserWarning, match=rf"'{name}' \(1 of 2 rows\)"):
        mr.load_atomic(tmp_path)
