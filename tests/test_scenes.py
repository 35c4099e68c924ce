from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import UserError
from semiseg.scenes import CLASSES, VAL_START, difficulty, scene, write_scenes
from semiseg.types import voc_color

Scene = tuple[np.ndarray, np.ndarray]  # image and mask


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, num_train=9, num_val=4, size=48, seed=3, labeled=5)
    return root


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    """The first 300 scenes of 32 px."""
    return [scene(0, index, 32) for index in range(300)]


def test_layout(root):
    numbers = [f"{i:04d}" for i in range(9)]
    assert set(files(root)) == {
        *(f"images/train/{n}.png" for n in numbers),
        *(f"images/val/{n}.png" for n in numbers[:4]),
        *(f"masks/train/{n}.png" for n in numbers[:5]),
        *(f"masks/val/{n}.png" for n in numbers[:4]),
        "classes.txt",
        *(f"splits/{name}.txt" for name in ("labeled", "unlabeled", "val")),
    }
    assert (root / "classes.txt").read_text().splitlines() == list(CLASSES)
    lists = {
        name: (root / "splits" / f"{name}.txt").read_text().splitlines() for name in ("labeled", "unlabeled", "val")
    }
    assert lists == {
        "labeled": [f"train/{n}" for n in numbers[:5]],
        "unlabeled": [f"train/{n}" for n in numbers[5:]],
        "val": [f"val/{n}" for n in numbers[:4]],
    }


def test_images_and_masks_can_be_read_back(root):
    with Image.open(root / "images/train/0002.png") as image, Image.open(root / "masks/train/0002.png") as mask:
        assert (image.mode, image.size) == ("RGB", (48, 48))
        assert (mask.mode, mask.size) == ("P", (48, 48))
        expected_image, expected_mask = scene(3, 2, 48)
        np.testing.assert_array_equal(np.asarray(image), expected_image)
        np.testing.assert_array_equal(np.asarray(mask), expected_mask)
        palette = mask.getpalette()
        assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(256)] == [voc_color(i) for i in range(256)]
        colored = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(colored, np.array([voc_color(i) for i in range(len(CLASSES))])[expected_mask])


def test_same_seed_same_files(root, tmp_path):
    told: list[tuple[int, int]] = []
    numbers = {"num_train": 9, "num_val": 4, "size": 48, "seed": 3, "labeled": 5}
    write_scenes(tmp_path / "again", **numbers, on_image=lambda *count: told.append(count))
    assert told == [(done, 13) for done in range(1, 14)]
    assert files(tmp_path / "again") == files(root)
    write_scenes(tmp_path / "other", num_train=9, num_val=4, size=48, seed=4, labeled=5)
    assert files(tmp_path / "other")["images/train/0000.png"] != files(root)["images/train/0000.png"]


def test_an_image_does_not_depend_on_how_many_there_are(root, tmp_path):
    write_scenes(tmp_path / "more", num_train=12, num_val=6, size=48, seed=3, labeled=7)
    more = {name: content for name, content in files(tmp_path / "more").items() if name.endswith("png")}
    fewer = {name: content for name, content in files(root).items() if name.endswith("png")}
    assert fewer.items() <= more.items()


def test_no_image_twice(drawn):
    others = [scene(seed, first + i, 32) for seed, first in ((0, VAL_START), (1, 0), (1, VAL_START)) for i in range(20)]
    assert len({image.tobytes() for image, _ in (*drawn, *others)}) == 360


def test_every_five_scenes_show_every_class(drawn):
    """Enough of it, too, to learn something: the shape on top is of each class in turn."""
    on_top = [(mask == 1 + index % 5).mean() for index, (_, mask) in enumerate(drawn)]
    ground = [(mask == 0).mean() for _, mask in drawn]
    fewest = {*np.argsort(on_top)[:10].tolist(), *np.argsort(ground)[:10].tolist()}
    large = {index: scene(0, index, 96) for index in fewest}  # a scene is the same in every size
    for size, scenes in ((32, dict(enumerate(drawn))), (96, large)):
        for index, (image, mask) in scenes.items():
            assert image.shape == (size, size, 3)
            assert image.dtype == mask.dtype == np.uint8
            assert mask.max() < len(CLASSES)
            assert (mask == 1 + index % 5).mean() > 0.008
            assert (mask == 0).mean() > 0.15


def test_difficulty_is_uniform_and_by_seed_and_index():
    values = [difficulty(0, index) for index in range(2000)]
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.min() > 150
    assert counts.max() < 250
    assert values[7] == difficulty(0, 7)
    assert values[7] != difficulty(1, 7)


def contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Distance of each class' mean color from the ground's, relative to the spread of the colors of the ground."""
    ground = image[mask == 0]
    gaps = [np.linalg.norm(image[mask == kind].mean(0) - ground.mean(0)) for kind in np.unique(mask) if kind]
    return float(np.mean(gaps) / (1 + ground.std(0).mean()))


def grain(image: np.ndarray, mask: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def num_classes(image: np.ndarray, mask: np.ndarray) -> float:
    return float(len(np.unique(mask)))


@pytest.mark.parametrize(("statistic", "sign"), [(contrast, -1), (grain, 1), (num_classes, 1)])
def test_hard_scenes_are_harder(drawn, statistic, sign):
    order = sorted(range(160), key=lambda index: difficulty(0, index))
    easiest, hardest = ([statistic(*drawn[index]) for index in part] for part in (order[:40], order[-40:]))
    # By more than a fifth of the easiest quarter's, which is several standard errors of the means.
    assert sign * (np.mean(hardest) - np.mean(easiest)) > 0.2 * np.mean(easiest)


def test_color_and_texture_are_habits_only(drawn):
    """Mean colors of one class overlap those of the others: a rule on color cannot be right everywhere."""
    colors: dict[int, list[np.ndarray]] = {kind: [] for kind in range(1, len(CLASSES))}
    for index, (image, mask) in enumerate(drawn):
        kind = 1 + index % 5
        colors[kind].append(image[mask == kind].mean(0))
    samples = [(kind, color) for kind, of_kind in colors.items() for color in of_kind]
    values = np.array([color for _, color in samples])
    kinds = np.array([kind for kind, _ in samples])
    distance = np.linalg.norm(values[:, None] - values, axis=-1)
    np.fill_diagonal(distance, np.inf)
    right = (kinds[distance.argmin(1)] == kinds).mean()  # nearest neighbor by color
    assert 0.25 < right < 0.75  # chance is 0.2


def test_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not an empty folder"):
        write_scenes(tmp_path, num_train=9, num_val=1, size=32, seed=0, labeled=5)
    with pytest.raises(UserError, match="is not an empty folder"):
        write_scenes(tmp_path / "mine.txt", num_train=9, num_val=1, size=32, seed=0, labeled=5)
    assert files(tmp_path) == {"mine.txt": b"keep"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labeled": 4}, "labeled needs to be at least 5, to show every class"),
        ({"labeled": 9}, "less than num_train 9, got 9"),
        ({"num_val": 0}, "num_val needs to be at least 1, got 0"),
        ({"size": 16}, "size needs to be at least 32, got 16"),
        ({"seed": -1}, "seed needs to be at least 0, got -1"),
    ],
)
def test_refuses_numbers_that_make_no_sense(tmp_path, wrong, message):
    numbers = {"num_train": 9, "num_val": 1, "size": 32, "seed": 0, "labeled": 5} | wrong
    with pytest.raises(UserError, match=message):
        write_scenes(tmp_path / "new", **numbers)
    assert not (tmp_path / "new").exists()
