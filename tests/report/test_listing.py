"""The table of runs: words, dates and numbers stay whole on a terminal of 80 columns."""

from datetime import datetime, timedelta

import pytest
from rich.console import Console

from semiseg.engine.state import State
from semiseg.report import listing
from semiseg.runs import Run


@pytest.fixture
def lines(tmp_path, capsys):
    """lines(width, state, ...) -> the printed table, a row a line."""

    def lines(width: int, *states: State) -> list[str]:
        console = Console(width=width, color_system=None, force_terminal=True)
        console.print(listing.table(states, tmp_path))
        return capsys.readouterr().out.splitlines()

    return lines


def state(tmp_path, **values) -> State:
    scores = {name: {"miou": miou, "iou": [miou] * 6} for name, miou in (("teacher", 0.7873), ("student", 0.7952))}
    known = {"method": "unimatch_v2", "labeled": 5, "images": 200, "steps": 1000, "done": 1000, "scores": scores}
    return State(Run(tmp_path / "hardness/seed-0"), "finished", **known | values)


def test_nothing_is_cut_on_80_columns(tmp_path, lines):
    now = datetime.now().astimezone().replace(month=6, day=5, hour=9, minute=41)
    head, *rows = lines(80, state(tmp_path, changed=now))
    assert max(map(len, (head, *rows))) <= 80
    words = head.split() + [word for row in rows for word in row.split()]
    for whole in ("method", "labels", "5", "of", "200", "1000/1000", "78.73", "finished", "06-05", "09:41"):
        assert whole in words, whole
    assert "…" not in head + "".join(rows)


def test_a_wide_terminal_has_a_row_for_each_run(tmp_path, lines):
    now = datetime.now().astimezone().replace(month=6, day=5, hour=9, minute=41)
    _, row = lines(120, state(tmp_path, changed=now))
    assert row.split() == [
        "hardness/seed-0", "unimatch_v2", "5", "of", "200", "1000/1000", "78.73", "(student", "79.52)", "finished",
        "06-05", "09:41",
    ]  # fmt: skip


def test_what_is_from_another_year_has_its_date(tmp_path, lines):
    before = datetime.now().astimezone() - timedelta(days=400)
    _, row = lines(120, state(tmp_path, changed=before))
    assert row.split()[-1] == f"{before:%Y-%m-%d}"
