import importlib
import math
from pathlib import Path

import pytest
from PIL import Image

from semiseg.errors import UserError
from semiseg.report import figures
from semiseg.report.reading import read

pytest.importorskip("matplotlib", reason="extra report")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_each_figure_is_written_as_svg_and_png(made, tmp_path):
    for threshold in (0.5, 0.9):
        for seed in (0, 1):
            made(f"t{threshold}/seed-{seed}", seed=seed, threshold=threshold)
    found = figures.write([tmp_path / "runs"], tmp_path / "out", overwrite=False)
    assert found == ["bars", "sweep-method.threshold", "hardness", "pictures"]
    assert names(tmp_path / "out") == {f"{name}.{kind}" for name in found for kind in ("svg", "png")}
    drawn = (tmp_path / "out" / "bars.svg").read_text()
    assert all(word in drawn for word in ("t0.5", "t0.9", "80.5", "mIoU, %"))  # the mean of 80 and 81
    for name in found:
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size[0] > 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3
    again = figures.write([tmp_path / "runs"], tmp_path / "again", overwrite=False)
    assert all((tmp_path / "out" / f"{name}.svg").read_bytes() == (tmp_path / "again" / f"{name}.svg").read_bytes()
               for name in again)  # fmt: skip


@pytest.mark.parametrize(("seeds", "mean"), [(1, 80), (2, 80.5)])
def test_one_seed_has_no_error_bar(made, tmp_path, seeds, mean):
    """A bar of length 0 would say that seeds do not differ."""
    for seed in range(seeds):
        made(f"t/seed-{seed}", seed=seed)
    sheet = importlib.import_module("matplotlib.figure").Figure()
    figures._bars(sheet, known([tmp_path / "runs"]))
    (bar,) = (one for one in sheet.axes[0].containers if hasattr(one, "has_yerr"))
    ends = [end for cap in bar.lines[1] for end in cap.get_ydata()]
    spread = 0.5**0.5 if seeds == 2 else math.nan
    assert ends == pytest.approx([mean - spread, mean + spread], nan_ok=True)


def test_pictures_have_no_gaps_between_rows(made, tmp_path):
    made("one")
    figures.write([tmp_path / "runs"], tmp_path / "out", overwrite=False)
    with Image.open(tmp_path / "out" / "pictures.png") as image:
        width, height = image.size
    cell = figures._CELL  # image, truth and prediction have 8 x 6 px
    assert height / width == pytest.approx((cell * 6 / 8 + figures._TITLE) / (3 * cell), rel=0.02)


def known(runs: list[Path]) -> list[tuple[figures.Group, list[float]]]:
    return [(group, figures.last_miou(group)) for group in read(runs)]


def test_a_sweep_has_a_line_for_each_other_setting(made, tmp_path):
    for threshold in (0.9, 0.5, 0.7):
        made(f"one/{threshold}", threshold=threshold, weight=1)
    for threshold in (0.5, 0.7):
        made(f"three/{threshold}", threshold=threshold, weight=3, seed=1)
    made("alone", threshold=0.1, weight=5)
    found = figures.sweeps(known([tmp_path / "runs"]))
    assert set(found) == {"method.threshold", "method.weight"}
    lines = found["method.threshold"]
    assert {name: [value for value, _ in line] for name, line in lines.items()} == {
        "method.weight 1": [0.5, 0.7, 0.9],
        "method.weight 3": [0.5, 0.7],
    }
    assert lines["method.weight 3"][0][1] == pytest.approx([81.0])
    assert {name: [value for value, _ in line] for name, line in found["method.weight"].items()} == {
        "method.threshold 0.5": [1, 3],
        "method.threshold 0.7": [1, 3],
    }


def test_words_and_switches_make_no_sweep(made, tmp_path):
    made("one", method="imas", switch=True)
    made("two", method="gct", switch=False)
    assert figures.sweeps(known([tmp_path / "runs"])) == {}


def test_only_images_that_every_run_shows_are_compared(made, tmp_path):
    made("one")
    made("two", threshold=0.5, pictures=False)
    assert figures.shared_pictures(read([tmp_path / "runs"])) == ["val/0"]
    index = made("three", threshold=0.4).pictures / "index.json"
    index.write_text(index.read_text().replace("val/0", "val/1"))
    assert figures.shared_pictures(read([tmp_path / "runs"])) == []


def test_nothing_is_lost(made, tmp_path):
    run, out = made("run"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already; name another folder with --out, or use --overwrite"):
        figures.write([run.path], out, overwrite=False)
    figures.write([run.path], out, overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        figures.write([run.path], tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="there is no such folder"):
        figures.write([run.path], tmp_path / "no" / "out", overwrite=False)


def test_runs_without_anything_to_show(made, tmp_path):
    run = made("run", method="supervised", done=0)
    with pytest.raises(UserError, match="no evaluation and no hardness yet"):
        figures.write([run.path], tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_named(made, tmp_path):
    run = made("run")
    (run.pictures / "00000.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"00000\.jpg: cannot be read"):
        figures.write([run.path], tmp_path / "out", overwrite=False)


def test_without_matplotlib_it_says_what_to_install(made, tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    run = made("run")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'pip install "semiseg\[report\]"'):
        figures.write([run.path], tmp_path / "out", overwrite=False)
