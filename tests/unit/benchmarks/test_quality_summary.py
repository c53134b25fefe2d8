"""The arithmetic of the benchmark's summary, on numbers that can be checked by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality_summary import (
    Measured,
    Row,
    against,
    best_of,
    compare,
    measured,
    ratio_of,
    summary_text,
    worst_first,
    write_summary,
)
from federated_yolo.storage.run_dir import read_csv


def trained(name: str, *scores: float) -> Measured:
    return Measured(name, scores)


ROW = Row(
    name="alike3",
    is_alike=True,
    is_chosen_on=True,
    pooled=(
        trained("centralised, batch 16", 0.40, 0.44),
        trained("centralised, batch 8", 0.5, 0.5),
    ),
    alone=(trained("client_0 alone", 0.30, 0.50), trained("client_1 alone", 0.45, 0.45)),
    federated=(trained("defaults", 0.48, 0.50), trained("fedavgm", 0.45, 0.45)),
    num_clients=3,
    num_alone=3,
    num_images=72,
    num_objects=900,
)
UNLIKE = replace(ROW, name="unlike3", is_alike=False, federated=(trained("defaults", 0.44, 0.44),))


def test_a_ratio_is_one_of_means_with_the_standard_error_of_both() -> None:
    # Means 0.3 and 0.4, and their standard errors:
    # sd of (0.29, 0.31) is 0.02 / sqrt(2), over sqrt(2) seeds 0.01; of (0.38, 0.42) 0.02.
    ratio = ratio_of(trained("a", 0.29, 0.31), trained("b", 0.38, 0.42))
    assert ratio is not None
    assert ratio.value == pytest.approx(0.75)
    assert ratio.error == pytest.approx(0.75 * ((0.01 / 0.3) ** 2 + (0.02 / 0.4) ** 2) ** 0.5)
    assert str(ratio) == "0.750 ± 0.045"


def test_one_seed_gives_a_ratio_without_an_error_and_nothing_learned_gives_none() -> None:
    assert str(ratio_of(trained("a", 0.3), trained("b", 0.4, 0.4))) == "0.750"
    assert ratio_of(trained("a", 0.3), trained("b", 0.0)) is None
    assert ratio_of(trained("a", 0.3), None) is None
    assert str(ratio_of(trained("a", 0.0, 0.0), trained("b", 0.4, 0.4))) == "0.000 ± 0.000"


def test_the_best_is_the_one_with_the_highest_mean_and_not_the_highest_seed() -> None:
    assert best_of([]) is None
    assert ROW.best_pooled == trained("centralised, batch 8", 0.5, 0.5)
    assert ROW.best_alone == trained("client_1 alone", 0.45, 0.45)  # the other has a seed of 0.5


def test_records_are_put_together_by_kind_and_name() -> None:
    records = [
        {"kind": kind, "name": name, "metrics": {"mAP50-95": score, "mAP50": 0.9}}
        for kind, name, score in (
            ("federated", "defaults", 0.3),
            ("local", "defaults", 0.1),
            ("federated", "fedavgm", 0.2),
            ("federated", "defaults", 0.4),
        )
    ]
    assert measured(records, "federated") == (
        trained("defaults", 0.3, 0.4),
        trained("fedavgm", 0.2),
    )


def test_goals_are_lower_for_unlike_clients_and_say_what_is_missing() -> None:
    assert (ROW.goal, UNLIKE.goal) == (0.97, 0.95)
    assert against(ROW.ratio, ROW.goal) == "met"  # 0.49 / 0.5
    assert against(UNLIKE.ratio, UNLIKE.goal) == "0.070 short"  # 0.44 / 0.5
    assert against(UNLIKE.ratio_alone, 1) == "0.022 short"  # 0.44 / 0.45
    assert against(None, 1) == ""


def test_the_worst_set_comes_first_and_one_without_a_ratio_last() -> None:
    unfinished = replace(ROW, name="unfinished", pooled=())
    assert [row.name for row in worst_first([unfinished, ROW, UNLIKE])] == [
        "unlike3",
        "alike3",
        "unfinished",
    ]


def test_the_summary_has_a_row_for_each_set(tmp_path: Path) -> None:
    part = replace(
        ROW, name="part", is_chosen_on=False, num_clients=30, federated=(trained("defaults", 0.5),)
    )
    text = write_summary([ROW, part, UNLIKE], tmp_path)
    assert text == (tmp_path / "summary.md").read_text()
    lines = text.splitlines()
    assert lines[2:5] == [
        "| unlike3 | unlike | 0.440 ± 0.000 | batch 8: 0.500 ± 0.000 | 0.880 ± 0.000 "
        "| ≥ 0.95: 0.070 short | client_1: 0.450 ± 0.000 | 0.978 ± 0.000 (0.022 short) "
        "| 72 | 900 | 2 | yes |",
        "| alike3 | alike | 0.490 ± 0.014 | batch 8: 0.500 ± 0.000 | 0.980 ± 0.020 "
        "| ≥ 0.97: met | client_1: 0.450 ± 0.000 | 1.089 ± 0.022 | 72 | 900 | 2 | yes |",
        "| part | alike | 0.500 | batch 8: 0.500 ± 0.000 | 1.000 | ≥ 0.97: met "
        "| best of the 3 largest: client_1: 0.450 ± 0.000 | 1.111 | 72 | 900 | 1 / 2 / 2 | no |",
    ]
    assert "Of 3 data sets, 2 meet the goal" in text
    assert "of 3, 2 are not below the best client alone" in text
    rows = read_csv(tmp_path / "summary.csv")
    assert [row["data"] for row in rows] == ["unlike3", "alike3", "part"]
    assert float(rows[0]["ratio"]) == pytest.approx(0.88)
    assert rows[2]["ratio_error"] == ""
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_a_summary_of_nothing_has_rows_without_numbers(tmp_path: Path) -> None:
    empty = replace(ROW, pooled=(), alone=(), federated=())
    lines = write_summary([empty], tmp_path).splitlines()
    assert lines[2] == "| alike3 | alike |  |  |  | ≥ 0.97 |  |  | 72 | 900 | 0 | yes |"
    assert not (tmp_path / "summary.png").exists()
    assert "settings" not in "\n".join(lines[3:])


def test_settings_are_compared_over_the_sets_that_all_of_them_have() -> None:
    other = replace(
        ROW, name="other", federated=(trained("defaults", 0.40), trained("fedavgm", 0.50))
    )
    kept_away = replace(other, name="away", is_chosen_on=False)
    comparisons = compare([ROW, UNLIKE, other, kept_away])
    assert [one.settings for one in comparisons] == ["fedavgm", "defaults"]
    fedavgm, defaults = comparisons
    assert fedavgm.common == defaults.common == ("alike3", "other")
    assert set(defaults.ratios) == {"alike3", "unlike3", "other"}
    assert fedavgm.mean == pytest.approx((0.9 * 1.0) ** 0.5)
    assert fedavgm.minimum == pytest.approx(0.9)
    assert defaults.mean == pytest.approx((0.98 * 0.8) ** 0.5)
    assert defaults.minimum == pytest.approx(0.8)
    text = summary_text([ROW, UNLIKE, other, kept_away])
    assert "| settings | geometric mean of 2 | minimum | alike3 | other | unlike3 |" in text
    assert "| defaults | 0.885 | 0.800 | 0.980 | 0.800 | 0.880 |" in text
    assert "Not in mean and minimum, for lack of some settings: unlike3." in text
