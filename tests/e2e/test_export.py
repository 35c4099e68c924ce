"""semiseg export and the use of what it writes, as in docs/export.md."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.engine import progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs() -> str:
    return (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def masks(folder: Path) -> dict[str, list[list[int]]]:
    """The index masks that a prediction of photos/images wrote, by name."""
    found = {}
    for photo in sorted(Path("photos/images").rglob("*.png")):
        name = photo.relative_to("photos/images")
        with Image.open(folder / name) as mask:
            found[name.as_posix()] = np.asarray(mask).tolist()
    return found


def test_the_document_works(semiseg, trained, scenes, here, docs):
    shutil.copytree(trained, "runs/photos")
    shutil.copytree(scenes, "photos", ignore=shutil.ignore_patterns("splits"))
    with Image.open("photos/images/val/0001.png") as photo:
        photo.convert("RGB").save("photo.jpg")
    called = [line for block in blocks(docs, "sh") for line in block.splitlines() if line.startswith("semiseg ")]
    assert [shlex.split(line)[1] for line in called] == ["export", "predict", "predict", "export"]
    for line in called:
        done = semiseg(line.removeprefix("semiseg "))
        assert (done.code, done.err) == (0, ""), line
    (code,) = blocks(docs, "python")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("{'")
    assert semiseg("predict runs/photos photos/images --out from-run").code == 0
    expected, by_folder, by_onnx = (masks(Path(name)) for name in ("from-run", "from-folder", "from-onnx"))
    assert len(expected) == 18
    assert by_folder == expected
    same = [np.mean(np.array(by_onnx[name]) == np.array(expected[name])) for name in expected]
    assert min(same) > 0.99


def test_export_says_what_it_wrote_and_measured(semiseg, trained, here, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    done = semiseg(f"export {trained} --out out")
    assert (done.code, done.err) == (0, "")
    assert re.search(
        r"^model\.onnx: differs from PyTorch by at most \de-0\d in probability \(3 validation images\)$",
        done.out,
        re.MULTILINE,
    )
    assert "out written; use it: semiseg predict out PHOTOS --out MASKS" in done.out
    assert "measuring" not in done.out
    done = semiseg(f"export {trained} --out out --overwrite --precision fp32 --precision int8 --checkpoint last")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^model-int8\.onnx: .*; mIoU \d+\.\d\d on 4 validation images$", done.out, re.MULTILINE)
    assert "measuring: 1 of 4 images" in done.out
    done = semiseg(f"export {trained} --out pytorch --no-onnx")
    assert (done.code, done.err) == (0, "")
    assert done.out == "pytorch written; use it: semiseg predict pytorch PHOTOS --out MASKS\n"


def test_an_interrupted_export_says_that_nothing_was_written(semiseg, trained, here, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("semiseg.engine.onnx_export.write", interrupt)
    done = semiseg(f"export {trained} --out out")
    assert (done.code, done.err) == (130, "semiseg: interrupted; nothing was written\n")
    assert [path.name for path in here.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--out recipe.yaml", "recipe.yaml: is a file"),
        ("--out photos", "photos: exists already; name a new folder with --out"),
        ("--out photos --overwrite", "photos: is no exported network"),
        ("--out out --precision fp8", "--precision: there is no 'fp8'; use fp16 or int8"),
        ("--out out --precision int8 --no-onnx", "--precision int8: is of ONNX files"),
        ("--out out --checkpoint worst", "checkpoint: there is no 'worst'"),
        ("--out out --set optim.lr=1", "has no effect on an export"),
        ("--out out --set data.root=nowhere", "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(semiseg, trained, here, contents, options, says):
    Path("photos").mkdir()
    before = contents(here)
    done = semiseg(f"export {trained} {options}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert says in done.err
    assert contents(here) == before


def test_predict_refuses_what_is_no_network(semiseg, scenes, here):
    Path("other.onnx").write_bytes(b"x" * 100)
    for network, says in (
        ("other.onnx", "other.onnx: is no ONNX file that onnxruntime can read"),
        ("none.onnx", "none.onnx: there is no such file"),
        ("nothing", "nothing: is not a run directory"),
    ):
        done = semiseg(f"predict {network} {scenes}/images/val --out out")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert says in done.err
        assert not Path("out").exists()
