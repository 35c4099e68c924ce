"""semiseg report."""

import shutil

import pytest

pytest.importorskip("plotly", reason="needs the extra report")


def test_a_report_of_real_runs(semiseg, trained, here):
    shutil.copytree(trained, "runs/imas")
    done = semiseg("report runs --out page.html")
    assert (done.code, done.err) == (0, "")
    assert done.out == "page.html written; open it in a browser\n"
    text = (here / "page.html").read_text()
    assert text.startswith("<!doctype html>")
    assert len(text) < 15e6
    assert text.count("data:image/png") > 4


def test_notes_are_printed_and_mistakes_are_one_line(semiseg, trained, here):
    shutil.copytree(trained, "runs/imas", ignore=shutil.ignore_patterns("pictures", "checkpoints"))
    done = semiseg("report runs/imas --out page.html")
    assert done.code == 0
    assert done.out.splitlines()[:2] == [
        "note: imas: no pictures: an earlier semiseg made it, or the folder pictures was removed",
        "note: imas: no checkpoint",
    ]
    again = semiseg("report runs/imas --out page.html")
    assert again.code == 2
    assert again.err == "semiseg: page.html: exists already; name another file with --out, or use --overwrite\n"
    assert semiseg("report runs/imas --out page.html --overwrite").code == 0
    foreign = semiseg("report nowhere --out other.html")
    assert (foreign.code, foreign.err) == (
        2,
        "semiseg: nowhere: has no run; name run directories, or folders of them\n",
    )
    assert not (here / "other.html").exists()
