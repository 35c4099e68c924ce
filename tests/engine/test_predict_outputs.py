"""Masks, overlays, probabilities, polygons and tables; marks; going on."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semiseg.engine.predict_files import KINDS, Options, loop, plan, predict_files
from semiseg.errors import UserError

EVERY = Options(KINDS, simplify=0.0, least_region=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_every_kind_of_output(model, flag, out):
    flag("a.png")
    flag("below/b.png", 60, 10)
    assert predict_files(model, out.parent / "photos", out, options=EVERY) == 2
    ends = (".png", "_overlay.png", "_probabilities.npz", ".json")
    written = {f"{stem}{end}" for stem in ("a", "below/b") for end in ends}
    shown = {name for name in contents(out) if not name.startswith(".parts")}
    assert shown == written | {"areas.csv", "coco.json", "classes.png"}


def test_areas(model, flag, out):
    flag("a.png")
    flag("below/b.png", 60, 10)
    predict_files(model, out.parent / "photos", out, options=Options(("areas",)))
    rows = list(csv.reader((out / "areas.csv").read_text().splitlines()))
    assert rows == [
        ["image", "class", "pixels", "share"],
        ["a.png", "sky", "200", "0.333333"],
        ["a.png", "red", "200", "0.333333"],
        ["a.png", "blue", "200", "0.333333"],
        *(["below/b.png", name, "200", "0.333333"] for name in ("sky", "red", "blue")),
    ]
    flag("c.png", 3, 3)  # a later prediction adds rows, and none twice
    before = contents(out)["areas.csv"]
    predict_files(model, [out.parent / "photos/c.png", out.parent / "photos"], out, options=Options(("areas",)))
    after = (out / "areas.csv").read_text()
    assert len(after.splitlines()) == 10
    assert after.startswith(before.decode().rsplit("below", 3)[0])


def test_coco(model, flag, out):
    flag("a.png")
    predict_files(model, out.parent / "photos", out, options=Options(("coco",)))
    found = json.loads((out / "coco.json").read_text())
    assert found["categories"] == [
        {"id": 1, "name": "red", "supercategory": ""},
        {"id": 2, "name": "blue", "supercategory": ""},
    ]  # sky is the background
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}]
    red, blue = found["annotations"]
    assert red == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": [[0, 0, 10, 0, 10, 20, 0, 20]],
        "bbox": [0, 0, 10, 20],
        "area": 200,
        "iscrowd": 0,
    }
    assert (blue["id"], blue["category_id"], blue["bbox"]) == (2, 2, [10, 0, 10, 20])


def test_labelme(model, flag, out):
    path = flag("below/a.png")
    predict_files(model, out.parent / "photos", out, options=Options(("labelme",)))
    file = out / "below" / "a.json"
    found = json.loads(file.read_text())
    assert (file.parent / found["imagePath"]).resolve() == path
    assert not Path(found["imagePath"]).is_absolute()
    assert (found["imageData"], found["imageHeight"], found["imageWidth"]) == (None, 20, 30)
    assert [shape["label"] for shape in found["shapes"]] == ["red", "blue"]
    assert found["shapes"][0]["points"] == [[0, 0], [10, 0], [10, 20], [0, 20]]
    assert {shape["shape_type"] for shape in found["shapes"]} == {"polygon"}


def test_small_regions_and_holes_are_left_out(model, out):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, :12, 0] = 255
    pixels[5:8, 5:8] = 0  # a hole of 9 pixels
    pixels[10:13, 15:18, 2] = 255  # a region of 9 pixels
    (out.parent / "photos").mkdir()
    Image.fromarray(pixels).save(out.parent / "photos" / "a.png")
    for least, regions, lengths in ((None, 1, [8]), (10, 1, [8]), (9, 2, [8 + 16, 8])):
        here = out / str(least)
        predict_files(model, out.parent / "photos", here, options=Options(("coco",), least_region=least, simplify=0.0))
        found = json.loads((here / "coco.json").read_text())["annotations"]
        assert len(found) == regions
        assert [len(one["segmentation"][0]) for one in found] == lengths


def test_probabilities(model, flag, out):
    flag("a.png")
    predict_files(model, out.parent / "photos", out, options=Options(("probabilities",)))
    with np.load(out / "a_probabilities.npz", allow_pickle=False) as found:
        assert found["classes"].tolist() == ["sky", "red", "blue"]
        probability = found["probabilities"]
    assert (probability.dtype, probability.shape) == (np.float16, (3, 20, 30))
    # red: logits 4 times (0.3, 1, 0)
    expected = np.exp([1.2, 4, 0]) / np.exp([1.2, 4, 0]).sum()
    np.testing.assert_allclose(probability[:, 3, 3].astype(float), expected, atol=1e-3)


def test_the_same_command_goes_on_with_every_kind(model, flag, out):
    """Whatever file is missing: it is written again, and no other is touched."""
    for name in ("a.png", "b.png"):
        flag(name)
    photos = out.parent / "photos"
    predict_files(model, photos, out, options=EVERY)
    before = contents(out)
    model.seen.clear()
    assert predict_files(model, photos, out, options=EVERY) == 2
    assert model.seen == []
    for missing in before:
        if missing == ".parts/written.json":  # without it the summaries seem to come from elsewhere
            continue
        (out / missing).unlink()
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        predict_files(model, photos, out, options=EVERY)
        after = contents(out)
        assert times == {path: path.stat().st_mtime_ns for path in times}
        if missing.endswith(".npz"):
            assert np.array_equal(*(np.load(out / f"{name}_probabilities.npz")["probabilities"] for name in "ab"))
        else:
            assert after[missing] == before[missing]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_others_are_never_replaced(model, flag, out, kind):
    """Neither with --overwrite nor without it: a file that was there, and one that was changed by hand."""
    flag("a.png")
    options = Options((kind,))
    predict_files(model, out.parent / "photos", out, options=options)
    for name in contents(out):
        own = (out / name).read_bytes()
        if name == ".parts/written.json":
            continue
        (out / name).write_bytes(b"mine")
        before = contents(out)
        for how in (options, Options((kind,), overwrite=True)):
            with pytest.raises(UserError, match=rf"{name}: exists already"):
                predict_files(model, out.parent / "photos", out, options=how)
            assert contents(out) == before
        (out / name).write_bytes(own)


def test_annotations_corrected_by_hand_are_not_replaced(model, flag, out):
    """labelme keeps what it does not know, the mark among it."""
    flag("a.png")
    predict_files(model, out.parent / "photos", out, options=Options(("labelme",)))
    content = json.loads((out / "a.json").read_text())
    content["shapes"].pop()
    (out / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a.json: exists already; name another folder"):
        predict_files(model, out.parent / "photos", out, options=Options(("labelme",), overwrite=True))


def test_masks_corrected_by_hand_are_not_replaced(color_model, flag, out):
    """Some programs keep the texts of a PNG, the mark among them."""
    flag("a.png")
    predict_files(color_model(), out.parent / "photos", out)
    with Image.open(out / "a.png") as mask:
        texts = PngInfo()
        for key, value in mask.info.items():
            if isinstance(value, str):
                texts.add_text(key, value)
        changed = mask.copy()
    changed.putpixel((0, 0), 2)
    changed.save(out / "a.png", pnginfo=texts)
    before = contents(out)
    with pytest.raises(UserError, match=r"a.png: exists already, and was changed after it was written; move it"):
        predict_files(color_model(name=b"other"), out.parent / "photos", out, options=Options(overwrite=True))
    assert contents(out) == before


@pytest.mark.parametrize("kind", KINDS)
def test_overwrite_replaces_what_another_model_wrote(color_model, flag, out, kind):
    flag("a.png")
    predict_files(color_model(), out.parent / "photos", out, options=Options((kind,)))
    other = color_model(name=b"other")
    with pytest.raises(UserError, match=r"exists already, from another checkpoint .*--overwrite"):
        predict_files(other, out.parent / "photos", out, options=Options((kind,)))
    assert predict_files(other, out.parent / "photos", out, options=Options((kind,), overwrite=True)) == 1
    assert len(other.seen) == 1
    assert predict_files(other, out.parent / "photos", out, options=Options((kind,))) == 1
    assert len(other.seen) == 1  # it is done


def test_files_of_another_model_that_stay_are_told(color_model, flag, out):
    """Masks of one network would lie beside areas, overlays and polygons of another, and nothing would say so."""
    flag("a.png")
    photos, told = out.parent / "photos", []

    def predict(name: bytes, *write: str, overwrite: bool = False) -> list[str]:
        told.clear()
        options = Options(write, overwrite=overwrite)
        predict_files(color_model(name=name), photos, out, on_unused=told.append, options=options)
        told[:] = [one for one in told if "which stay" in one.what]
        return [path.relative_to(out).as_posix() for one in told for path in one.files]

    assert predict(b"one", "masks", "overlays", "labelme", "areas") == []
    assert predict(b"one", "probabilities") == []
    assert predict(b"two", "masks", overwrite=True) == ["a_overlay.png", "a_probabilities.npz", "a.json", "areas.csv"]
    assert "of another checkpoint or other options, which stay: 4, e.g." in str(told[0])
    assert predict(b"two", "masks") == ["a_overlay.png", "a_probabilities.npz", "areas.csv"]
    assert predict(b"two", "overlays", "probabilities", "labelme", "areas", overwrite=True) == []


def test_summaries_do_not_mix_models(color_model, flag, out):
    flag("a.png")
    predict_files(color_model(), out.parent / "photos/a.png", out, options=Options(("areas",)))
    flag("b.png")
    with pytest.raises(UserError, match=r"a.areas.json: exists already, from another checkpoint or other options"):
        predict_files(color_model(name=b"other"), out.parent / "photos/b.png", out, options=Options(("areas",)))
    assert not (out / ".parts" / "b.areas.json").exists()


@pytest.mark.parametrize(
    "change", [Options(flip=True), Options(scales=(1.0, 2.0)), Options(window=16)], ids=["flip", "scales", "window"]
)
def test_other_options_are_another_prediction(model, flag, out, change):
    flag("a.png")
    predict_files(model, out.parent / "photos", out)
    with pytest.raises(UserError, match=r"exists already, from another .*, or with other options; name"):
        predict_files(model, out.parent / "photos", out, options=change)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"write": ("mask",)}, "^--write mask: there is no such output; choose of masks, overlays, prob.*, areas$"),
        ({"write": ()}, "^--write: names nothing"),
        ({"write": ("areas", "areas")}, "^--write: names areas twice"),
        ({"scales": (1.0, 0.0)}, "^--scales 0: is not between 0 and 8; use e.g. 0.75,1,1.25$"),
        ({"scales": (-1.0,)}, "^--scales -1: is not between"),
        ({"scales": (float("nan"),)}, "^--scales nan: is not between"),
        ({"scales": ()}, "^--scales: names no scale"),
        ({"scales": (1.0, 1.0)}, "^--scales: names 1.0 twice"),
        ({"least_region": 0, "write": ("coco",)}, "^--least-region 0: is no number of pixels; use 1"),
        ({"simplify": -1.0, "write": ("coco",)}, "^--simplify -1: is no distance in pixels; use 0"),
        ({"simplify": 1.0}, "^--simplify: has no effect without polygons; add coco or labelme to --write$"),
        ({"least_region": 5}, "^--least-region: has no effect without polygons"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(UserError, match=says):
        Options(**options)


def test_what_is_found_before_anything_is_written(model, flag, out, monkeypatch):
    flag("a.png")
    photos = out.parent / "photos"

    def refused(says: str, images=photos, **options):
        with pytest.raises(UserError, match=says):
            predict_files(model, images, out, options=Options(**options))
        assert not out.exists()

    refused("--window 7: is too small for this network; use 8 or more", window=7)
    monkeypatch.setattr(plan, "LARGE", 100)
    refused("a.png: has 30 x 20 pixels; probabilities are written for at most 100 pixels", write=("probabilities",))
    (photos / "b").mkdir()
    os.link(photos / "a.png", photos / "b" / "a.png")
    refused("its output would be that of .*a.png; rename one of the two", [photos / "a.png", photos / "b" / "a.png"])
    (photos / "a.png").rename(photos / "classes.png")
    refused("classes.png: its output would be that of the summary classes.png", photos / "classes.png")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    refused(r"--out .*out: no permission to write into", photos / "b")


def test_reading_and_writing_happen_beside_the_model(model, flag, out, monkeypatch):
    """While one image is predicted the next ones are read, and the last one is written."""
    import threading

    for name in "abcd":
        flag(f"{name}.png")
    threads = {}
    read, write = loop._Share._read, loop.OUTPUTS["masks"].write

    def reading(self, task):
        threads["read"] = threading.current_thread().name
        return read(self, task)

    def writing(found, path, mark):
        threads["write"] = threading.current_thread().name
        write(found, path, mark)

    monkeypatch.setattr(loop._Share, "_read", reading)
    monkeypatch.setitem(loop.OUTPUTS, "masks", loop.OUTPUTS["masks"].__class__(
        loop.OUTPUTS["masks"].path, writing, loop.OUTPUTS["masks"].mark
    ))  # fmt: skip
    times = []
    predict_files(model, out.parent / "photos", out, on_times=times.append)
    assert threads["read"].startswith("semiseg-read")
    assert threads["write"].startswith("semiseg-write")
    assert 0 <= times[0].read <= times[0].total
    assert 0 <= times[0].write <= times[0].total


def test_what_happens_when_a_file_cannot_be_written(model, flag, out, monkeypatch):
    """Nothing is written after it; the same command goes on."""
    for name in "abcdef":
        flag(f"{name}.png")
    save = Image.Image.save

    def full(image, path, *args, **kwargs):
        if Path(path).name == ".c.png.tmp":
            raise OSError(28, "No space left on device")
        save(image, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"c.png: cannot be written .*; 2 of 6 images were written to .*goes on$"):
        predict_files(model, out.parent / "photos", out)
    assert sorted(contents(out)) == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    monkeypatch.undo()
    assert predict_files(model, out.parent / "photos", out) == 6
    assert len(contents(out)) == 13
