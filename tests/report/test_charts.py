import json
from pathlib import Path

import pytest

from semiseg.report import charts
from semiseg.report.charts import Chart, sections
from semiseg.report.reading import read


@pytest.fixture
def both(made, tmp_path) -> dict[str, Chart]:
    for name, method, seed in (
        ("imas/seed-0", "imas", 0),
        ("imas/seed-1", "imas", 1),
        ("base/seed-0", "supervised", 0),
    ):
        made(name, method=method, seed=seed)
    return all_of(tmp_path / "runs")


def all_of(*paths: Path) -> dict[str, Chart]:
    return {chart.id: chart for section in sections(read(list(paths))) for chart in section.charts}


def lines(chart: Chart) -> dict[str, list[float]]:
    return {
        trace["name"]: trace["y"] for trace in chart.traces if "fill" not in trace and "choice" not in trace["meta"]
    }


def test_every_evaluated_network_has_a_line(both):
    assert lines(both["miou"]) == {
        "base": [20, 40, 60, 80],
        "imas, teacher": [20.5, 40.5, 60.5, 80.5],  # mean of the seeds
        "imas, student": [20.5, 40.5, 60.5, 80.5],
    }
    by_name = {trace["name"]: trace for trace in both["miou"].traces}
    assert by_name["imas, student"]["line"]["dash"] != by_name["imas, teacher"]["line"]["dash"]
    assert by_name["imas, teacher"]["line"]["color"] != by_name["base"]["line"]["color"]
    band = by_name["imas, teacher, spread"]
    assert band["x"] == [10, 20, 30, 40, 40, 30, 20, 10]
    assert band["y"][0] == pytest.approx(20.5 - 0.5**0.5, rel=1e-4)  # the deviation of 20 and 21
    assert "base, spread" not in by_name


def test_charts_are_there_for_what_was_recorded(both):
    assert list(both) == [
        "miou", "class", "classes", "number-loss", "number-labeled", "hardness", "shares",
        "pseudo-kept", "pseudo-accuracy", "pseudo-precision", "pseudo-recall", "gradient-norm", "lr", "number-own",
    ]  # fmt: skip
    assert lines(both["number-own"]) == {"base": [10, 20, 30, 40], "imas": [10.5, 20.5, 30.5, 40.5]}
    steps = next(trace["x"] for trace in both["gradient-norm"].traces if trace["name"] == "base")
    assert steps == [10, 30, 40]  # infinite at 20


def test_a_choice_has_the_lines_of_its_class(both):
    assert both["class"].choices == ("ground", "<b>disc</b>")
    found = [(trace["meta"]["choice"], trace["y"]) for trace in both["class"].traces if "fill" not in trace]
    assert found == [("ground", [20, 40, 60, 80]), ("ground", [20.5, 40.5, 60.5, 80.5])]  # the other occurs nowhere
    shares = [trace["y"] for trace in both["shares"].traces if trace["meta"]["choice"] == "<b>disc</b>"]
    assert shares[0] == [50, 50, 50, 50]
    assert {trace["meta"]["choice"] for trace in both["classes"].traces} == {"base", "imas"}


def test_pseudo_labels_are_those_that_the_method_uses(both):
    kept = both["pseudo-kept"]
    assert (kept.choices, kept.chosen) == (("from 0", "from 0.9"), 1)
    assert {trace["meta"]["choice"]: trace["y"][0] for trace in kept.traces} == {"from 0": 100, "from 0.9": 50}
    precision = {trace["meta"]["choice"]: trace["y"][0] for trace in both["pseudo-precision"].traces}
    assert precision == {"ground": 20, "<b>disc</b>": 30}
    assert "imas from 0.9" in both["pseudo-precision"].caption
    assert {t["meta"]["choice"]: t["y"][0] for t in both["pseudo-recall"].traces} == {"ground": 60, "<b>disc</b>": 70}


def test_hardness_has_a_band_and_single_images(both):
    chart = both["hardness"]
    main = [trace for trace in chart.traces if "follow" not in trace["meta"]]
    assert [trace["name"] for trace in main] == ["imas, spread", "imas"]
    assert main[1]["y"] == pytest.approx([0.375] * 4)
    followed = {trace["meta"]["follow"]: trace["y"] for trace in chart.traces if "follow" in trace["meta"]}
    assert list(followed) == list(chart.follows)
    assert followed["u3 (hardest, imas)"] == [0.75] * 4


def test_texts_cannot_be_markup(made):
    found = all_of(made("a<i>b").path)
    assert list(lines(found["miou"])) == ["a&lt;i&gt;b, teacher", "a&lt;i&gt;b, student"]
    assert not any("<" in trace["name"] for chart in found.values() for trace in chart.traces)
    assert found["miou"].numbers()[0][0] == "a<i>b, teacher"  # the page escapes these


def test_numbers_say_first_lowest_highest_last(both):
    assert both["number-own"].numbers() == [
        ("base", "10", "10", "40", "40"), ("imas", "10.5", "10.5", "40.5", "40.5"),
    ]  # fmt: skip
    assert both["class"].numbers()[0] == ("ground · base", "20", "20", "80", "80")


def test_plotly_knows_every_property(both):
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="needs the extra report")
    for chart in both.values():
        graph_objects.Figure(data=chart.traces, layout=chart.layout)


def test_a_run_without_records_has_no_chart(made):
    assert all_of(made("blank", done=0).path) == {}


def test_colors_of_groups_differ():
    assert len(set(charts.COLORS)) == len(charts.COLORS)


def test_lines_of_classes_with_similar_colors_differ_in_their_dash(made, tmp_path):
    run = made("base", method="supervised", classes=["sky", "building", "car", "pedestrian", "fence"])
    environment = run.environment()
    environment["classes"]["colors"] = [[0, 0, 0], [128, 0, 0], [64, 0, 0], [192, 0, 0], [128, 128, 128]]
    run.path.joinpath("environment.json").write_text(json.dumps(environment))
    records = [{**record, "iou": [0.5] * 5, "pseudo_labels": None} for record in run.metrics("val")]
    run.path.joinpath("metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = [trace["line"] for trace in all_of(run.path)["classes"].traces]
    assert [line["dash"] for line in found] == ["solid", "solid", "dash", "dot", "dash"]
    assert found[1]["color"] == found[2]["color"] == "#e60000"


@pytest.mark.parametrize(("highest", "dtick"), [(3.0, "D2"), (300.0, 1)])
def test_a_logarithmic_axis_has_several_numbers(made, highest, dtick):
    run = made("base", method="supervised")
    run.log({"kind": "train", "step": 50, "gradient_norm": highest})
    assert all_of(run.path)["gradient-norm"].layout["yaxis"]["dtick"] == dtick


def test_axes_of_shares_have_no_negative_numbers(both):
    modes = {name: chart.layout["yaxis"]["rangemode"] for name, chart in both.items()}
    assert {modes[name] for name in ("miou", "class", "classes", "shares", "hardness", "pseudo-kept")} == {
        "nonnegative"
    }
    assert modes["number-loss"] == "normal"
