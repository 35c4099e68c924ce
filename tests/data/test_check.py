from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from semiseg.data import check as check_module
from semiseg.data.check import Report, check, digests_of_masks, shares_of_classes
from semiseg.data.layouts import folder as layout
from semiseg.data.masks import StoredMask
from semiseg.data.read import Header, read_header
from semiseg.errors import UserError


def report(root: Path, full: bool = True, **settings) -> Report:
    config = layout.Config(**({"root": root, "crop": 16} | settings))
    return check(layout.load(config), config, full)


def run(root: Path, full: bool = True, **settings) -> list[str]:
    return list(report(root, full, **settings).notes)


def refused(root: Path, full: bool = True, **settings) -> str:
    with pytest.raises(UserError) as caught:
        run(root, full, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(folder: Path) -> Path:
    """The plain layout with masks as people draw them: no two are the same, and no value lies between its neighbors."""
    for number, path in enumerate(sorted((folder / "masks").iterdir())):
        mask = np.array(Image.open(path))
        mask[:, 1::2] = mask[:, 1::2][:, ::-1]
        mask[0, [0, number + 1]] = mask[0, [number + 1, 0]]
        Image.fromarray(mask).save(path)
    return folder


def test_nothing_to_say_about_sound_data(folder):
    assert run(folder) == []


@pytest.mark.parametrize(
    ("part", "kind"),
    [("labeled", "image"), ("labeled", "mask"), ("val", "image"), ("val", "mask"), ("unlabeled", "image")],
)
def test_a_broken_file_is_named(folder, part, kind):
    path = getattr(getattr(layout.load(layout.Config(root=folder)), part)[-1], kind)
    path.write_bytes(path.read_bytes()[:45])
    assert refused(folder).startswith(f"{path}: not a readable image")


def test_digests_of_masks_tell_how_far_they_are(folder):
    dataset, told = layout.load(layout.Config(root=folder)), []
    found = digests_of_masks(dataset, folder, lambda *count: told.append(count))
    total = len(dataset.labeled) + len(dataset.val)
    assert len(found["labels"]) == total
    assert sorted(told) == [(done, total) for done in range(1, total + 1)]


def test_it_tells_how_far_it_is(folder):
    (folder / "images/11.png").write_bytes(b"")  # counts, too
    config = layout.Config(root=folder, crop=16, on_unreadable="skip")
    told: list[tuple[int, int]] = []
    check(layout.load(config), config, on_image=lambda *count: told.append(count))
    assert told == [(done, 12) for done in range(1, 13)]


def test_the_first_of_several_errors_and_their_number(folder):
    for name in ("08", "10", "11"):
        (folder / f"images/{name}.png").write_bytes(b"")
    message = refused(folder)
    assert message.startswith(f"{folder / 'images/08.png'}: ")
    assert message.endswith("(and 2 more)")


def test_heads_only(folder, write):
    png = (folder / "images/11.png").read_bytes()
    write("images/11.png", png[:45])  # the head is whole
    assert run(folder, full=False) == []
    write("images/11.png", b"no image")
    assert "images/11.png" in refused(folder, full=False)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.zeros((24, 20), np.uint8), "20x24 px"),
        (np.full((20, 24), 99, np.uint8), "1 of 8 masks, e.g. "),
        (np.full((20, 24, 3), (9, 0, 0), np.uint8), "color images and hold #090000"),
    ],
)
@pytest.mark.parametrize("number", ["00", "07"])
def test_masks_that_do_not_fit(folder, write, mask, says, number):
    path = write(f"masks/{number}.png", mask)
    message = refused(folder)
    assert str(path) in message
    assert says in message


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"crop": 41}, "use 40 or less"),
        ({"crop": (30, 49)}, "use [30, 48] or less"),
        ({"crop": (41, 30)}, "use [40, 30] or less"),
        ({"crop": 21, "scale": (0.5, 1.0)}, "use 20 or less"),
        ({"crop": 28, "long_side": 16}, "use 26 or less"),
    ],
)
def test_a_crop_that_nothing_fills(folder, settings, remedy):
    message = refused(folder, **settings)
    assert message.startswith(f"data.crop: {settings['crop']} ")
    assert remedy in message


@pytest.mark.parametrize("settings", [{"crop": 40}, {"crop": (40, 48)}, {"crop": 26, "long_side": 16}])
def test_the_crop_that_works(folder, settings):
    assert run(folder, **settings) == []


def test_one_large_image_is_enough(folder, write, ramp):
    write("images/11.png", np.zeros((100, 100, 3), np.uint8))
    assert run(folder, crop=200) == []


def test_a_tall_and_a_wide_image_do_not_fill_a_square(folder, write):
    write("images/10.png", np.zeros((100, 10, 3), np.uint8))
    write("images/11.png", np.zeros((10, 100, 3), np.uint8))
    assert "use 40 or less" in refused(folder, crop=90)


def test_oddities_are_returned(folder, write):
    for number in range(8):
        mask = np.roll(np.repeat([9, 5, 8, 6, 9, 7], 4), number).astype(np.uint8)
        write(f"masks/{number:02}.png", mask[None].repeat(20, 0))
    labeled = layout.load(layout.Config(root=folder)).labeled
    write(f"masks/{labeled[2].name}.png", np.full((20, 24), 255, np.uint8))
    for number in range(8, 12):
        (folder / f"images/{number:02}.png").unlink()
    absent, ignored, pool = run(folder)
    assert "shows c0, c1, c2, c3, c4, c10, c11, c12, c13, c14, c15, c16 and 7 more:" in absent
    assert "everywhere: 1, e.g." in ignored
    assert str(labeled[2].mask) in ignored
    assert "no unlabeled images" in pool


def test_validation_masks_without_a_single_label(folder, write):
    val = layout.load(layout.Config(root=folder)).val
    for sample in val:
        write(f"masks/{sample.name}.png", np.full((20, 24), 255, np.uint8))
    assert "data.val: every validation mask" in refused(folder)


@pytest.fixture
def black_and_white(folder, write):
    write("classes.txt", "background\nroad\n")
    for number in range(8):
        write(
            f"masks/{number:02}.png", np.where(np.arange(24) < 12 + number, 0, 255).astype(np.uint8)[None].repeat(20, 0)
        )
    return folder


def test_black_and_white_masks_are_explained(black_and_white):
    message = refused(black_and_white)
    assert "data.values='{255: 1}'" in message
    assert " %), which means 'ignored'; if 255 is a class, e.g. road, set" in message
    assert "'{0: 1, 255: 0}' if 0 is road" in message
    assert run(black_and_white, values={255: 1}) == []


def test_void_borders_in_a_two_class_dataset_are_noted_where_they_may_be_the_class(black_and_white, write):
    labeled = layout.load(layout.Config(root=black_and_white)).labeled
    write(f"masks/{labeled[0].name}.png", np.repeat([[0, 1, 255]], 8, 1).repeat(20, 0).astype(np.uint8))
    notes = run(black_and_white)
    assert "7 masks" in notes[0]
    assert "no other class" in notes[0]
    assert all("no other class" not in note for note in run(black_and_white, values={255: 255}))


def test_two_conventions_for_two_classes_are_refused(black_and_white, write):
    write("masks/00.png", np.repeat([[0, 1]], 12, 1).repeat(20, 0).astype(np.uint8))
    message = refused(black_and_white)
    assert "7 masks" in message
    assert "data.values='{1: 1, 255: 1}'" in message
    assert report(black_and_white, values={1: 1, 255: 1}).meaning.classes == {0: 0, 1: 1, 255: 1}


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(path).save(path, exif=exif)


def test_photographs_that_exif_turns_are_noted_where_sizes_do_not_tell(folder):
    for number in (0, 1, 9):  # the last is unlabeled
        turned(folder / f"images/{number:02}.png", 3)
    (note,) = run(folder)
    assert "orientation 3" in note
    assert ": 2, e.g." in note
    for orientation in ("upright", "stored"):
        assert run(folder, mask_orientation=orientation) == []


def test_masks_of_turned_sizes_tell_how_they_are_drawn(folder, write):
    turned(folder / "images/00.png", 3)
    turned(folder / "images/01.png", 6)
    assert "data.mask_orientation=stored" in refused(folder)
    assert run(folder, mask_orientation="stored") == []
    write("masks/01.png", np.asarray(Image.open(folder / "masks/01.png")).T.copy())
    assert run(folder) == []
    assert "data.mask_orientation=upright" in refused(folder, mask_orientation="stored")


def test_dark_photographs_are_noted(folder, write):
    for number in range(12):
        write(f"images/{number:02}.png", np.linspace(99, 3000 + number, 480).astype(np.uint16).reshape(20, 24))
    (note,) = run(folder)
    assert ": 12, e.g." in note
    assert "the largest value is 3011 of 65535" in note
    assert "data.white=4095" in note
    assert run(folder, white=4095) == []
    write("images/05.png", np.full((20, 24), 40000, np.uint16))
    assert run(folder) == []


def test_further_pages_of_photographs_are_noted(folder):
    def save(number: int, kind: int, size: tuple[int, int]) -> None:
        path = folder / f"images/{number:02}.png"
        with Image.open(path) as image:
            image.load()
        path.unlink()
        page = image.resize(size)
        page.encoderinfo = {"tiffinfo": {254: kind}}
        image.save(path.with_suffix(".tif"), save_all=True, append_images=[page])

    save(0, kind=1, size=(12, 10))  # a smaller copy
    save(1, kind=4, size=(24, 20))  # a mask of transparency
    assert run(folder) == []
    for number in (2, 9):
        save(number, kind=0, size=(24, 20))
    (note,) = run(folder, full=False)
    assert note.startswith(f"Photographs with several pages or frames: 2, e.g. {folder}/images/")
    assert "the first one alone is used" in note


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_further_frames_of_animations_are_noted(folder, suffix):
    images = []
    for number in (3, 9):
        path = folder / f"images/{number:02}.png"
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
        path.unlink()
    images[0].save(folder / f"images/03{suffix}")
    assert run(folder, full=False) == []
    images[1].save(folder / f"images/09{suffix}", save_all=True, append_images=[images[0]])
    (note,) = run(folder, full=False)
    assert note.startswith(f"Photographs with several pages or frames: 1, e.g. {folder}/images/09{suffix}; ")


def test_photographs_that_look_like_masks_are_noted(folder):
    Image.fromarray(np.eye(24, dtype=np.uint8)[:20]).save(folder / "images/11.png")
    Image.new("RGB", (24, 20)).save(folder / "images/10.png")  # a black photograph
    (note,) = run(folder)
    assert note.startswith("Photographs of 16 colors or less, as masks have them: 1, e.g. ")
    assert "images/11.png" in note
    assert run(folder, full=False) == []


def test_class_names_that_are_nearly_the_same_are_noted(folder, write):
    write("classes.txt", (folder / "classes.txt").read_text().replace("c3\n", "C 2\n").replace("c2\n", "c  2\n", 1))
    (note,) = run(folder)
    assert note == "Classes whose names differ in case or spaces only: 'c  2', 'C 2'."


def test_one_mask_for_several_photographs_is_noted(folder):
    (folder / "masks/03.png").write_bytes((folder / "masks/05.png").read_bytes())
    (note,) = run(folder)
    assert note.startswith("Photographs whose masks are the same, byte for byte: 2, e.g. ")
    assert "images/03.png" in note
    assert "images/05.png" in note


def test_the_same_photograph_in_training_and_validation_is_noted(folder):
    val = layout.load(layout.Config(root=folder)).val[0]
    (folder / "images/copy.png").write_bytes(val.image.read_bytes())
    (note,) = run(folder)
    assert "byte for byte: 1, e.g." in note
    assert str(folder / "images/copy.png") in note
    assert str(val.image) in note


def test_one_class_is_nothing_to_learn_or_to_measure(folder, write):
    dataset = layout.load(layout.Config(root=folder))
    for sample in dataset.val:
        write(f"masks/{sample.name}.png", np.full((20, 24), 3, np.uint8))
    assert [note.partition(":")[0] for note in run(folder)] == ["The validation masks show only c3"]
    write(f"masks/{dataset.val[0].name}.png", np.arange(480, dtype=np.uint8).reshape(20, 24) % 22)
    says = "Classes that labeled masks show and no validation mask: c22, c23; they are not measured"
    assert any(note.startswith(says) for note in run(folder))
    for sample in dataset.labeled:
        write(f"masks/{sample.name}.png", np.full((20, 24), 3, np.uint8))
    assert "shows only c3 (class 3)" in refused(folder)


def test_a_report_counts(folder, write):
    (folder / "images/.hidden").mkdir()
    found = report(folder)
    assert {name: part.images for name, part in found.parts.items()} == {"labeled": 6, "unlabeled": 4, "validation": 2}
    assert found.parts["labeled"].sizes == ((20, 24), (20, 24))
    assert found.parts["labeled"].pixels == dict.fromkeys(range(24), 6 * 20)
    assert found.parts["validation"].masks == dict.fromkeys(range(24), 2)
    assert found.kinds == {"8-bit gray PNG": 8}
    assert [one.what for one in found.unused] == ["hidden folders, not searched"]
    assert shares_of_classes(found, layout.load(layout.Config(root=folder)).classes.names).startswith(
        "c0 4.2 %, c1 4.2 %"
    )


def test_what_was_decoded_once_is_not_decoded_again(folder, monkeypatch):
    run(folder)
    for name in ("read_image", "read_stored"):
        monkeypatch.setattr(f"semiseg.data.check.{name}", None)
    assert run(folder) == []


def test_a_check_that_was_stopped_goes_on_where_it_was(folder, monkeypatch):
    decoded: list[str] = []
    read = check_module.read_stored

    def once(path: Path) -> StoredMask:
        decoded.append(path.name)
        return read(path)

    def stop_at_an_unlabeled_one(path: Path) -> Header:
        if path.name == "09.png":
            raise KeyboardInterrupt
        return read_header(path)

    monkeypatch.setattr(check_module, "read_stored", once)
    with monkeypatch.context() as stopping:
        stopping.setattr(check_module, "read_header", stop_at_an_unlabeled_one)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    assert len(decoded) == 8
    run(folder)
    assert len(decoded) == 8  # no mask twice


def test_masks_of_images_that_nobody_has_labeled_are_noted(folder, write):
    names = ["background", *(f"c{number}" for number in range(1, 24))]
    write("classes.txt", "\n".join(names))
    first, second = [sample.mask for sample in layout.load(layout.Config(root=folder)).labeled[:2]]
    for path in (first, second):
        write(f"masks/{path.name}", np.zeros((20, 24), np.uint8))
    (note,) = run(folder)
    assert note.startswith(f"Labeled masks that show background alone: 2 of 6, e.g. {first}")
    write("classes.txt", "\n".join(["ground", *names[1:]]))
    assert run(folder) == []
    assert run(folder, background="ground") == [note]


def test_a_class_of_few_pixels_is_noted(folder, monkeypatch):
    monkeypatch.setattr(check_module, "_HARDLY", 0.001)  # of these small masks
    labeled = {sample.mask for sample in layout.load(layout.Config(root=folder, crop=16)).labeled}
    for number, path in enumerate(sorted(labeled)):
        mask = np.array(Image.open(path))
        mask[mask == 5] = 4
        mask[3, 3] = 5 if number == 0 else mask[3, 3]
        Image.fromarray(mask).save(path)
    notes = [note for note in run(folder) if "hardly" in note]
    assert notes == ["Classes with hardly a labeled pixel: c5 (1 px); label more of them, or expect them to be lost."]
