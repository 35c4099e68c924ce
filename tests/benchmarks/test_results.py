"""What is committed: results files, and the page made from them."""

import common
import pytest
import report
from targets import TARGETS, Target, found

FILES = sorted(common.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_results_file_fits_the_schema(path):
    record = common.Record.model_validate_json(path.read_text(encoding="utf-8"))
    assert path.name.startswith(f"{record.suite}--")
    assert record.suite in report.ORDER
    figures = {figure.name: figure.median for figure in record.figures}
    for ratio in record.ratios:
        assert ratio.value == pytest.approx(figures[ratio.numerator] / figures[ratio.denominator])


def test_the_page_is_what_the_results_files_make_of_it():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(common.read()), "run make bench-report"


def test_the_page_names_no_place_on_a_disk():
    text = report.PAGE.read_text(encoding="utf-8") + "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert not any(word in text for word in ("/root", "/home", "/work", "/tmp"))


def test_a_target_says_how_far_it_was_missed():
    least, most = (Target("step", "r", "cpu", kind, 2, "") for kind in ("at least", "at most"))
    assert least.verdict(2) == most.verdict(2) == "met"
    assert least.verdict(1) == most.verdict(4) == "missed by a factor of 2.00"


def test_a_target_for_a_gpu_is_not_met_by_a_cpu():
    records = common.read()
    for target in TARGETS:
        for record in records:
            if found(target, record):
                assert (target.on == "gpu") == record.device.startswith("cuda")


@pytest.fixture
def record() -> common.Record:
    return common.Record(
        suite="views", title="t", date="2026-01-01", commit=None, versions={},
        machine={"gpus": [], "cpu": "c", "threads": 2},
        others=0.5, device="cpu", peers={}, settings={}, figures=[], phases=[], growth=[], notes=[],
        ratios=[common.Ratio(name="imas / semiseg", numerator="a", denominator="b", value=3)],
    )  # fmt: skip


def test_what_follows_no_power_law_has_a_column_for_each_size(record: common.Record):
    def growth(name: str, sizes: tuple[float, ...], exponent: float | None = None) -> common.Growth:
        points = [common.Point(size=size, median=size / 8, iqr=0) for size in sizes]
        return common.Growth(name=name, by="step", unit="1", points=points, exponent=exponent)

    series = [growth("a", (2, 4)), growth("b", (4,)), growth("c", (2, 4), exponent=1.0)]
    page = report.page([record.model_copy(update={"growth": series})])
    assert "| by step | 2 | 4 |\n| --- | --- | --- |\n| a | 0.25 | 0.5 |\n| b |  | 0.5 |\n" in page
    assert "| c | step | 2: 0.25 (0); 4: 0.5 (0) | 1.00 |\n" in page


def test_figures_taken_beside_other_work_are_provisional(record: common.Record):
    assert report.page([record]).count("met (provisional)") == 2  # among the targets, and in its section
    assert "provisional" not in report.page([record.model_copy(update={"others": 0.0})]).lower()


def test_a_target_that_was_not_measured_is_on_the_page_as_such():
    page = report.page([])
    assert page.count("not measured yet") == len(TARGETS)
