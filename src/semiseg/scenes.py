"""Draws small scenes with exact masks, so that `semiseg demo` needs no download.

Shapes of five classes lie on textured ground. Each class has a usual color and a usual texture, but many shapes have
others: only the outline identifies a class (for cloth, the folds). So a network learns colors and textures from a few
labels, and outlines from more images. Scenes differ in difficulty: easy ones have one or two large shapes with clear
contrast, hard ones have many small shapes with clutter, shadow, haze and noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from semiseg.errors import UserError
from semiseg.types import voc_color

CLASSES: tuple[str, ...] = ("ground", "disc", "box", "star", "ring", "cloth")
"""Names of the classes; class 0 is the background."""

Plane = Float[np.ndarray, "h w"]

VAL_START = 1_000_000  # number of the first validation scene, whatever the number of train images


def write_scenes(
    root: Path,
    *,
    num_train: int,
    num_val: int,
    size: int = 96,
    seed: int,
    labeled: int,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes scenes in the layout `folder`. Only the labeled and the validation images have masks.

    `root` gets `images/{train,val}/NNNN.png`, `masks/{train,val}/NNNN.png` (palette PNGs of class indices),
    `classes.txt` and `splits/{labeled,unlabeled,val}.txt`. The labeled images are the first `labeled` train images;
    together they show every class.

    Args:
        root: a folder that is empty or does not exist.
        num_train: number of train images, labeled and unlabeled.
        num_val: number of validation images.
        size: height and width of an image, px.
        seed: image i depends only on `seed` and i.
        labeled: number of train images with a mask.
        on_image: called with the number of images that are done and the number of all images.

    Raises:
        UserError: the folder is not empty, or a number is out of range.
    """
    fewest = len(CLASSES) - 1
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is not an empty folder: give one that is empty or does not exist yet")
    if not fewest <= labeled < num_train:
        span = f"at least {fewest}, to show every class, and less than num_train {num_train}"
        raise UserError(f"labeled needs to be {span}, got {labeled}")
    for name, value, least in (("num_val", num_val, 1), ("size", size, 32), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} needs to be at least {least}, got {value}")

    for split, first, num_images, num_masks in (("train", 0, num_train, labeled), ("val", VAL_START, num_val, num_val)):
        images, masks = root / "images" / split, root / "masks" / split
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(num_images):
            image, mask = scene(seed, first + i, size)
            Image.fromarray(image).save(images / f"{i:04d}.png", compress_level=1)
            if i < num_masks:
                indices = Image.fromarray(mask)
                indices.putpalette([channel for value in range(256) for channel in voc_color(value)])
                indices.save(masks / f"{i:04d}.png")
            on_image((num_train if split == "val" else 0) + i + 1, num_train + num_val)

    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "splits").mkdir()
    for name, split, numbers in (
        ("labeled", "train", range(labeled)),
        ("unlabeled", "train", range(labeled, num_train)),
        ("val", "val", range(num_val)),
    ):
        (root / "splits" / f"{name}.txt").write_text("".join(f"{split}/{i:04d}\n" for i in numbers))


def difficulty(seed: int, index: int) -> float:
    """Returns the difficulty of scene `index`, from 0 (easy) to 1 (hard), uniform over scenes."""
    return float(np.random.default_rng((seed, index, 0)).random())


def scene(seed: int, index: int, size: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Draws scene `index`: its RGB image and the class index of every pixel.

    Its topmost shape has class 1 + index % 5, so that any five successive scenes show every class.
    """
    hard = difficulty(seed, index)
    rng = np.random.default_rng((seed, index, 1))
    canvas = _Canvas.of_ground(rng, size, hard)
    mask = np.zeros((size, size), np.uint8)

    for _ in range(rng.integers(0, 3 + int(12 * hard)) if hard > 0.25 else 0):  # clutter has the class of the ground
        canvas.paint(rng, str(rng.choice(_CLUTTER)), rng.random(2), rng.uniform(0.05, 0.11))

    others = rng.integers(1, len(CLASSES), rng.integers(round(3 * hard), 2 + round(4 * hard)))
    places = np.empty((0, 2))
    for kind in (*others, 1 + index % (len(CLASSES) - 1)):
        radius = (0.3 - 0.15 * hard) * rng.uniform(0.8, 1.2)
        # Draw some places and take the one that is farthest from the other shapes. In the hardest scenes only one place
        # is drawn, so that shapes overlap.
        tries = rng.uniform(0.7 * radius, 1 - 0.7 * radius, (1 + round(9 * (1 - hard)), 1, 2))
        gaps = np.linalg.norm(tries - places, axis=-1).min(axis=1, initial=2)
        places = np.concatenate([places, tries[np.argmax(gaps)]])
        mask[canvas.paint(rng, CLASSES[kind], places[-1], radius)] = kind
    return canvas.photograph(rng), mask


@dataclass(frozen=True)
class _Canvas:
    """An image that is being drawn. Lengths are fractions of its side, colors lie in [0, 1]."""

    x: Plane
    y: Plane
    image: Float[np.ndarray, "h w 3"]
    ground: Float[np.ndarray, " 3"]  # mean color
    light: Float[np.ndarray, " 2"]  # direction that it comes from
    hard: float

    @classmethod
    def of_ground(cls, rng: np.random.Generator, size: int, hard: float) -> "_Canvas":
        """Makes a canvas that shows only ground: two shades of one color in a random texture."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = np.meshgrid(axis, axis)
        chroma = rng.uniform(-1, 1, 3) * (0.05 + 0.1 * hard)
        ground = (rng.uniform(0.25, 0.75) + chroma).astype(np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        light = np.array([math.cos(angle), math.sin(angle)], np.float32)
        u, v = _turned(x - 0.5, y - 0.5, rng.uniform(0, np.pi))
        texture = _TEXTURES[rng.integers(len(_TEXTURES))](rng, 3 * u, 3 * v) - 0.5
        shade = (0.08 + 0.22 * hard * rng.random()) * rng.uniform(0.6, 1.4, 3)
        image = ground + (texture + 0.3 * (_clouds(rng, x, y) - 0.5))[..., None] * shade
        return cls(x, y, image.astype(np.float32), ground, light, hard)

    def paint(self, rng: np.random.Generator, kind: str, center: np.ndarray, radius: float) -> Bool[np.ndarray, "h w"]:
        """Paints one shape with its shadow and returns its mask."""
        angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
        phases = rng.uniform(0, 2 * np.pi, 3)

        def outlined(x: float, y: float) -> tuple[Plane, Plane, Plane]:
            u, v = _turned(self.x - x, self.y - y, angle)
            u, v = u / (radius * stretch), v / (radius / stretch)
            return radius * _SHAPES[kind](u, v, phases), u, v

        shadow, _, _ = outlined(*(center - 0.12 * radius * self.light).tolist())
        self.image[:] *= 1 - 0.45 * np.clip(0.5 - shadow / (0.25 * radius), 0, 1)[..., None]

        outline, u, v = outlined(*center.tolist())
        contrast = 0.75 - 0.5 * self.hard
        texture, usual = _HABITS.get(kind, (_plain, None))
        first = _color_away(rng, self.ground, contrast, usual if rng.random() < _COLOR_HABIT else None)
        second = _color_away(rng, first, rng.uniform(0.3, 0.6))
        if kind != "cloth" and rng.random() >= _TEXTURE_HABIT:
            texture = _TEXTURES[rng.integers(len(_TEXTURES))]
        shade = texture(rng, u, v)[..., None]
        shading = 1 + 0.12 * (u * self.light[0] + v * self.light[1])
        rim = 1 - 0.3 * np.exp(-np.square(outline / 0.012))
        color = (first + (second - first) * shade) * (shading * rim)[..., None]

        cover = np.clip(0.5 - outline * len(self.x), 0, 1)[..., None]  # share of each pixel, for smooth edges
        self.image[:] += (color - self.image) * cover
        return outline < 0

    def photograph(self, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the image with effects of light and camera. They are stronger in harder scenes."""
        bad = self.hard * rng.uniform(0.3, 1, 7)
        image = np.clip(self.image, 0, 1)
        toward = (self.x - 0.5) * self.light[0] + (self.y - 0.5) * self.light[1]
        image *= (1 + (0.3 + 0.7 * bad[0]) * toward)[..., None]
        u, _ = _turned(self.x - 0.5, self.y - 0.5, rng.uniform(0, 2 * np.pi))  # shadow of something outside the image
        image *= (1 - 0.7 * bad[1] * np.clip(0.5 + (u - rng.uniform(-0.3, 0.4)) / 0.06, 0, 1))[..., None]
        image *= 1 + 0.3 * bad[2] * rng.uniform(-1, 1, 3)  # color cast
        image = np.clip(image, 0, 1) ** np.exp(0.6 * bad[3] * rng.uniform(-1, 1))  # gamma
        image += 0.5 * bad[4] * (rng.uniform(0.2, 0.8) - image)  # haze
        soft = Image.fromarray((255 * image).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(float(bad[5]) * len(image) / 80)
        )
        grain = rng.standard_normal(image.shape, np.float32) * (2 + 18 * bad[6])
        return np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _color_away(
    rng: np.random.Generator,
    color: np.ndarray,
    distance: float,
    like: tuple[float, float, float] | None = None,
) -> Float[np.ndarray, " 3"]:
    """Draws random colors; returns the one whose distance from `color` is nearest to `distance`, and near `like`."""
    tries = rng.uniform(0.05, 0.95, (32, 3)).astype(np.float32)
    miss = np.abs(np.linalg.norm(tries - color, axis=1) - distance)
    if like is not None:
        miss += 0.8 * np.linalg.norm(tries - np.array(like, np.float32), axis=1)
    return tries[np.argmin(miss)]


# Shapes. Each function takes coordinates (u, v) in units of the radius, and phases. It returns about the distance of
# each pixel to the outline, negative inside.


def _disc(u: Plane, v: Plane, _: np.ndarray) -> Plane:
    return np.hypot(u, v) - 0.9


def _box(u: Plane, v: Plane, _: np.ndarray) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.78


def _star(u: Plane, v: Plane, _: np.ndarray) -> Plane:
    sector = 2 * np.pi / 5
    r, angle = np.hypot(u, v), np.abs((np.arctan2(v, u) + np.pi) % sector - sector / 2)  # 0 at a notch
    notch, tip_u, tip_v = 0.48, 1.12 * math.cos(sector / 2), 1.12 * math.sin(sector / 2)
    edge = math.hypot(tip_u - notch, tip_v)  # from the notch to the tip
    return (tip_v * (r * np.cos(angle) - notch) - (tip_u - notch) * r * np.sin(angle)) / edge


def _ring(u: Plane, v: Plane, _: np.ndarray) -> Plane:
    return np.abs(np.hypot(u, v) - 0.72) - 0.22


def _cloth(u: Plane, v: Plane, phases: np.ndarray) -> Plane:
    angle = np.arctan2(v, u)
    a, b, c = phases.tolist()
    waves = 0.16 * np.sin(2 * angle + a) + 0.13 * np.sin(3 * angle + b) + 0.07 * np.sin(5 * angle + c)
    return np.hypot(u, v) - 0.88 - waves


def _stick(u: Plane, v: Plane, _: np.ndarray) -> Plane:
    return np.hypot(u - np.clip(u, -1, 1), v) - 0.16


def _stone(u: Plane, v: Plane, phases: np.ndarray) -> Plane:
    return 0.7 * _cloth(u / 0.7, v / 0.7, phases)


_SHAPES: dict[str, Callable[[Plane, Plane, np.ndarray], Plane]] = {
    "disc": _disc,
    "box": _box,
    "star": _star,
    "ring": _ring,
    "cloth": _cloth,
    "stick": _stick,
    "stone": _stone,
}
_CLUTTER = ("stick", "stone")


# Textures. Each function takes a generator and coordinates (u, v), and returns shades in [0, 1].


def _plain(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return 0.5 + 0.2 * np.tanh(u)


def _clouds(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _noise(rng, u.shape, 5, 5) * 0.6 + _noise(rng, u.shape, 13, 13) * 0.4


def _grass(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _noise(rng, u.shape, 14, 56)


def _sand(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _noise(rng, u.shape, 64, 64)


def _stripes(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _steep(np.sin(rng.uniform(4, 11) * u + rng.uniform(0, 6)))


def _checks(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    often = rng.uniform(4, 8)
    return _steep(2 * np.sin(often * u) * np.sin(often * v))


def _dots(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    often = rng.uniform(6, 10)
    return _steep(np.sin(often * u) + np.sin(often * v) - 1)


def _folds(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    return _steep(np.sin(rng.uniform(7, 10) * (u + 0.3 * np.sin(rng.uniform(3, 5) * v + rng.uniform(0, 6)))))


def _steep(wave: Plane) -> Plane:
    return 0.5 + 0.5 * np.tanh(2.5 * wave)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], rows: int, columns: int) -> Plane:
    grid = Image.fromarray(rng.random((rows, columns), np.float32))
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


_TEXTURES: tuple[Callable[[np.random.Generator, Plane, Plane], Plane], ...] = (
    _plain,
    _clouds,
    _grass,
    _sand,
    _stripes,
    _checks,
    _dots,
)

_COLOR_HABIT, _TEXTURE_HABIT = 0.6, 0.95  # probabilities of the usual color and of the usual texture
_HABITS: dict[str, tuple[Callable[[np.random.Generator, Plane, Plane], Plane], tuple[float, float, float]]] = {
    "disc": (_dots, (0.85, 0.25, 0.2)),
    "box": (_checks, (0.2, 0.4, 0.85)),
    "star": (_plain, (0.9, 0.8, 0.25)),
    "ring": (_stripes, (0.25, 0.7, 0.3)),
    "cloth": (_folds, (0.6, 0.3, 0.75)),
}
