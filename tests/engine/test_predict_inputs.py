"""Which images a prediction finds."""

import numpy as np
import pytest
from PIL import Image

from semiseg.engine.predict_files import Options, inputs, predict_files
from semiseg.engine.predict_files.inputs import find
from semiseg.errors import UserError


@pytest.fixture
def photos(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "below/b.png", "below/deep/c.jpg"):
        flag(name)
    (tmp_path / "photos" / "notes.txt").write_text("hello")
    return tmp_path / "photos"


def names(given, out="out", unused=None):
    found = find(
        [given] if isinstance(given, str) else given, inputs.Path(out), ([] if unused is None else unused).append
    )
    return [(item.name, item.below.as_posix()) for item in found]


def test_files_folders_and_patterns(photos):
    everything = [("a.png", "a"), ("below/b.png", "below/b"), ("below/deep/c.jpg", "below/deep/c")]
    assert names("photos") == everything
    assert names("photos/below/b.png") == [("b.png", "b")]
    assert names("photos/*.png") == [("a.png", "a")]
    assert sorted(names("photos/**/*.[pj]*g")) == everything
    assert names("photos/below/**/c.*") == [("deep/c.jpg", "deep/c")]
    assert names(str(photos / "b*" / "*.png")) == [("below/b.png", "below/b")]
    assert names(["photos/below", "photos/a.png"]) == [("b.png", "b"), ("deep/c.jpg", "deep/c"), ("a.png", "a")]
    assert names(["photos", "photos/a.png", str(photos / "a.png")]) == everything  # each once


@pytest.mark.parametrize(("out", "pattern"), [("photos/out", "photos/**/*.[pj]*g"), ("photos", "photos/**/*.jpg")])
def test_the_same_pattern_does_not_match_what_was_written(photos, model, out, pattern):
    """The masks of the first command would be predicted by the second, and stand in areas.csv."""
    place, tables = inputs.Path(out), []
    for _ in range(2):
        predict_files(model, pattern, place, options=Options(("masks", "areas")))
        tables.append((place / "areas.csv").read_text())
    assert tables[0] == tables[1]
    mask, told = place / "below/deep/c.png", []
    assert mask not in [item.file for item in find(["photos/**/*.*"], place, told.append)]
    assert mask in told[-1].files
    assert told[-1].what == "files that a prediction wrote into the output folder, not predicted"
    with pytest.raises(UserError, match=f"^{mask}: was written by a prediction into {out}; name photographs$"):
        find([mask], place)
    assert len(find([mask], inputs.Path("elsewhere"))) == 1


def test_a_file_whose_name_looks_like_a_pattern(photos, flag):
    flag("d[1].png")
    assert names("photos/d[1].png") == [("d[1].png", "d[1]")]


def test_other_files_are_told(photos):
    told = []
    assert len(names("photos/*", unused=told)) == 1
    names("photos", unused=told)
    assert [(one.what, one.files[0].name) for one in told] == [
        ("files that match and are no images, not used", "notes.txt"),
        (".txt files, not used", "notes.txt"),
    ]


@pytest.mark.parametrize(
    ("given", "out", "says"),
    [
        ("nothing", "out", r"^nothing: there is no such image or folder$"),
        ("photos/*.tiff", "out", r"^photos/\*\.tiff: the pattern matches nothing$"),
        ("photos/be*", "out", r"^photos/be\*: the pattern matches only folders; add /\* for the files in them$"),
        ("photos/*.txt", "out", r"^photos/\*\.txt: matches no image, only e.g. photos/notes.txt$"),
        (
            "photos",
            "photos",
            r"^--out photos: is inside photos, so masks would be predicted .*; name a folder outside$",
        ),
        ("photos", "photos/below/../masks", r"^--out photos/below/../masks: is inside photos"),
    ],
)
def test_what_cannot_be_found(photos, given, out, says):
    with pytest.raises(UserError, match=says):
        names(given, out)


def test_a_folder_beside_the_images_may_be_written(photos):
    assert len(names("photos", "photos-masks")) == 3
    assert names("photos/a.png", "photos") == [("a.png", "a")]  # only this file is predicted


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_further_frames_and_pages_are_told(photos, model, suffix):
    with Image.open(photos / "a.png") as image:
        image.save(photos / f"d{suffix}")
        image.save(photos / f"e{suffix}", save_all=True, append_images=[image.rotate(180)])
    told = []
    predict_files(model, photos, inputs.Path("out"), on_unused=told.append)
    assert [str(note) for note in told if "frames" in note.what] == [
        f"images with several pages or frames, of which the first one alone is predicted: 1, {photos}/e{suffix}; "
        "save the others as files of their own"
    ]


def test_images_that_look_like_masks_are_told(photos, model):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for number in range(20):
        Image.fromarray(noise).save(photos / f"below/{number}.png")
    for name in ("a.png", "below/b.png", "below/deep/c.jpg"):
        Image.fromarray(noise).save(photos / name)
    told = []
    predict_files(model, photos, inputs.Path("out"), on_unused=told.append)
    assert not any("colors" in note.what for note in told)
    Image.fromarray(noise[..., 0] % 5).save(photos / "a.png")
    predict_files(model, photos, inputs.Path("again"), on_unused=told.append)
    assert str(told[-1]) == (
        f"images of 16 colors or less, as masks have them, among 8 that were looked at: 1, {photos}/a.png; name "
        "photographs if these are masks"
    )


def test_images_that_cannot_be_read_are_told_before_anything_is_written(photos, model):
    (photos / "d.png").write_bytes(b"no image")
    Image.new("F", (30, 20)).save(photos / "e.tif")
    content = (photos / "a.png").read_bytes()
    (photos / "f.png").write_bytes(content[: len(content) // 2])  # its header is whole
    told = []

    def tell(note):
        told.append((str(note), inputs.Path("out").exists()))

    says = r"^3 of 6 images cannot be read; the other 3 were written to out; the same command goes on with the missing"
    with pytest.raises(UserError, match=says):
        predict_files(model, photos, inputs.Path("out"), on_unused=tell)
    note, was_there = next(one for one in told if "cannot be read" in one[0])
    assert note == (
        f"images that cannot be read, while the other 4 are predicted: 2, e.g. {photos}/d.png; {photos}/d.png: not a "
        "readable image (damaged, cut off or no image at all); replace or remove it; "
        f"{photos}/e.tif: holds floating-point values; save it as an 8-bit image"
    )
    assert not was_there
    told.clear()
    with pytest.raises(UserError, match=r"^photos/d.png: not a readable image"):
        predict_files(model, "photos/d.png", inputs.Path("out"), on_unused=tell)
    assert not any("cannot be read" in note for note, _ in told)
