import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from semiseg import runs as runs_module
from semiseg.errors import UserError
from semiseg.report import page


class Parsed(HTMLParser):
    """The elements of a page with their attributes, its texts, and the content of its scripts."""

    void = frozenset({"meta", "img", "input", "br", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.words.append(data.strip())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= {**found}.items()]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture(autouse=True)
def _plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """plotly.js is 5 MB and is tested by its makers."""
    import types

    stub = types.SimpleNamespace(get_plotlyjs=lambda: "window.Plotly = {}; '</script>'")
    original = page._needed
    monkeypatch.setattr(page, "_needed", lambda name: stub if name == "plotly.offline" else original(name))


@pytest.fixture
def written(made, tmp_path) -> Parsed:
    for name, method, seed in (
        ("imas/seed-0", "imas", 0),
        ("imas/seed-1", "imas", 1),
        ("base/seed-0", "supervised", 0),
    ):
        made(name, method=method, seed=seed)
    page.write([tmp_path / "runs"], tmp_path / "page.html")
    return Parsed((tmp_path / "page.html").read_text())


def test_a_page_needs_nothing_from_elsewhere(written):
    for tag, attributes in written.elements:
        assert tag not in ("link", "iframe", "object", "embed")
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    (policy,) = written.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'")


def test_a_page_has_every_section_and_every_chart(written):
    sections = [found["id"] for found in written.all("section")]
    assert sections == [
        "results", "accuracy", "losses", "unlabeled", "pseudo-labels", "optimization", "confusion", "pictures",
        "recipe", "environment",
    ]  # fmt: skip
    assert {found["href"] for found in written.all("a")} == {f"#{name}" for name in sections}
    figures = [found["data-chart"] for found in written.all("figure") if "data-chart" in found]
    assert set(figures) == set(written.data["charts"])
    assert len(written.scripts) == 3


def test_ids_are_unique_and_what_is_referred_to_is_there(written):
    ids = [attributes["id"] for _, attributes in written.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in written.elements:
        referred = [value for key, value in attributes.items() if key.startswith("aria-") and key.endswith("by")]
        assert {*referred} <= {*ids}
    assert all("alt" in found for found in written.all("img"))


def test_runs_can_be_picked_and_seeds_are_one(written):
    assert len(written.all("input", name="run")) == 2
    assert [run["name"] for run in written.data["runs"]] == ["base", "imas"]
    assert "(2 seeds)" in written.words
    assert "80.50 ± 0.71" in written.words  # 80 and 81
    assert "80.00" in written.words


def test_differing_settings_are_marked(written):
    text = "\n".join(filter(None, written.words))
    differing = text[text.index("Settings that differ") : text.index("All settings")]
    assert "method.name" in differing
    assert "optim.lr" not in differing
    assert "engine.seed" in differing  # 0 beside 0; 1
    assert text.count("differs\n") > 0


def test_pictures_are_of_every_run(written):
    (image,) = written.data["images"]
    assert [layer["label"] for layer in image["layers"]] == [
        "image", "truth", "base, student", "imas, teacher (seed 0)", "imas, student (seed 0)",
    ]  # fmt: skip
    assert [layer["mask"] for layer in image["layers"]] == [False, True, True, True, True]
    assert all(layer["uri"].startswith("data:image/") for layer in image["layers"])
    assert image["worst"] == [0, 1]
    assert image["miou"]["imas, teacher (seed 0)"] == 0.25
    assert [one["label"] for one in written.data["confusions"]] == [
        "base, student", "imas, teacher (seed 0)", "imas, student (seed 0)",
    ]  # fmt: skip
    assert written.data["confusions"][0]["rows"] == [[3, 1], [0, 4]]
    hardest = [word for word in written.words if word.startswith("hardness 0.")]
    assert hardest[:4] == ["hardness 0.750", "hardness 0.500", "hardness 0.000", "hardness 0.250"]


def test_names_cannot_be_markup_or_end_a_script(made, tmp_path):
    hostile = "</script><script>alert(1)</script>"
    run = made("run", classes=["ground", hostile])
    page.write([run.path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    parsed = Parsed(text)
    assert parsed.data["classes"] == ["ground", hostile]
    assert hostile in parsed.words
    assert len(parsed.scripts) == 3


def test_a_run_without_pictures_has_a_page_that_says_why(made, tmp_path):
    run = made("run", pictures=False)
    notes = page.write([run.path], tmp_path / "page.html")
    assert notes[0] == "run: no pictures: an earlier semiseg made it, or the folder pictures was removed"
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert notes[0] in parsed.words
    assert not {"pictures", "confusion"} & {found["id"] for found in parsed.all("section")}


def test_what_holds_for_several_runs_is_said_once(made, tmp_path):
    runs = [made("one").path, made("two", pictures=False, threshold=0.5).path]
    assert page.write(runs, tmp_path / "page.html") == [
        "one, two: no checkpoint",
        "two: no pictures: an earlier semiseg made it, or the folder pictures was removed",
    ]


@pytest.mark.parametrize("done", [0, 10])
def test_a_run_in_progress_is_reported_as_far_as_it_is(made, tmp_path, done):
    notes = page.write([made("run", done=done, pictures=False).path], tmp_path / "page.html")
    assert notes[0] == f"run: not complete: {done} of 40 steps are recorded"
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert f"{done} of 40" in parsed.words


def test_a_file_is_replaced_only_where_it_is_wanted(made, tmp_path):
    run, out = made("run"), tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"page\.html: exists already; .*--overwrite"):
        page.write([run.path], out)
    assert out.read_text() == "mine"
    page.write([run.path], out, overwrite=True)
    assert out.read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="is a folder"):
        page.write([run.path], tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        page.write([run.path], tmp_path / "no" / "page.html")


@pytest.mark.parametrize("content", [None, b"no picture", b"\x89PNG\r\n\x1a\n" + b"0" * 2_000_001])
def test_a_picture_that_cannot_be_read_is_one_line(made, tmp_path, content):
    run = made("run")
    path = run.pictures / "00000-1.png"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000-1\.png: .*delete the folder pictures"):
        page.write([run.path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    shutil.rmtree(run.pictures)
    page.write([run.path], tmp_path / "page.html")


def test_pictures_of_other_folders_are_not_read(made, tmp_path):
    run = made("run")
    (tmp_path / "secret.jpg").write_bytes((run.pictures / "00000.jpg").read_bytes())
    index = json.loads((run.pictures / "index.json").read_text())
    index["images"][0]["image"] = str(tmp_path / "secret.jpg")
    (run.pictures / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"run/pictures/secret\.jpg: cannot be read"):
        page.write([run.path], tmp_path / "page.html")


@pytest.mark.parametrize("broken", [{"step": 1}, [], {"step": 1, "networks": {}, "images": [{}], "unlabeled": []}])
def test_a_damaged_index_of_pictures_is_one_line(made, tmp_path, broken):
    run = made("run")
    (run.pictures / "index.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"runs/run"):
        page.write([run.path], tmp_path / "page.html")


def test_a_full_disk_is_one_line_and_leaves_nothing(made, tmp_path, monkeypatch):
    run = made("run")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs_module.os, "fsync", full)
    with pytest.raises(UserError, match=r"page\.html: cannot be written \(No space left on device\)"):
        page.write([run.path], tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_missing_package_is_named(made, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r'needs the package plotly: pip install "semiseg\[report\]"'):
        page.write([made("run").path], tmp_path / "page.html")


def test_long_runs_are_thinned_out_not_cut_off(made, tmp_path):
    run = made("run", done=0)
    peak = 4321
    lines = [
        json.dumps({"kind": "train", "step": step, "loss": 99.0 if step == peak else step % 10})
        for step in range(1, 20_001)
    ]
    config = run.config.read_text().replace("steps: 40", "steps: 20000")
    run.config.write_text(config)
    (run.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    speed = {"images_per_step": 1, "images_per_second": 1.0, "peak_memory_mb": 1}
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(json.loads(line) | speed)}\n" for line in lines))
    page.write([run.path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    (trace,) = Parsed(text).data["charts"]["number-loss"]["traces"]
    assert len(trace["x"]) <= 800
    assert (trace["x"][0], trace["x"][-1]) == (1, 20_000)
    assert (peak, 99.0) in zip(trace["x"], trace["y"], strict=True)
    assert len(text) < 200_000


def test_the_page_says_where_it_may_be_written(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    page.write([made("run").path], Path("~/page.html"))
    assert (tmp_path / "page.html").is_file()
