"""Writes the page of a ranking: one HTML file that shows each image, its prediction, and why it was chosen."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from semiseg.data.read import read_image
from semiseg.types import ClassTable

_SIDE = 360  # px of a thumbnail

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
p.classes span { display: inline-block; margin-right: 1rem; }
p.classes i { display: inline-block; width: 1em; height: 1em; margin-right: 0.3em; border: 1px solid #888; }
figure { margin: 0 0 2rem; }
figure div { display: flex; flex-wrap: wrap; gap: 6px; }
img { max-width: 100%; height: auto; }
figcaption { max-width: 45rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$about</p>
<p class="classes">$classes</p>
$figures
</body>
</html>
""")

_CLASS = Template('<span><i style="background: $color"></i>$name</span>')

_FIGURE = Template("""<figure>
<div><img src="$photo" alt="photograph"> <img src="$shown" alt="prediction"></div>
<figcaption><b>$rank. $file</b> ($by)<br>$why</figcaption>
</figure>""")


@dataclass(frozen=True)
class Figure:
    """One image of the page.

    Attributes:
        rank: its place, from 1 on.
        file: the image.
        name: what it is called.
        overlay: the file of the image with its prediction.
        by: what it was ranked by, e.g. `hardness 0.81`.
        why: why it was chosen.
    """

    rank: int
    file: Path
    name: str
    overlay: Path
    by: str
    why: str


def page(title: str, about: str, classes: ClassTable, figures: Iterable[Figure], white: int | None = None) -> str:
    """Returns the page as HTML. It needs no other file.

    Args:
        title: its title.
        about: a paragraph above the images.
        classes: the meaning of the colors.
        figures: the images.
        white: the value that is shown as white in images of more than 8 bits.

    Raises:
        UserError: an image cannot be read.
    """
    return _PAGE.substitute(
        title=escape(title),
        about=escape(about),
        classes="\n".join(
            _CLASS.substitute(color=_css(color), name=escape(name))
            for name, color in zip(classes.names, classes.colors, strict=True)
        ),
        figures="\n".join(_figure(one, white) for one in figures),
    )


def _figure(one: Figure, white: int | None) -> str:
    photo = to_pil_image(read_image(one.file, enough=_SIDE, white=white))
    with Image.open(one.overlay) as overlay:
        shown = _thumbnail(overlay.convert("RGB"))
    return _FIGURE.substitute(
        rank=one.rank,
        file=escape(one.name),
        by=escape(one.by),
        why=escape(one.why),
        photo=_thumbnail(photo),
        shown=shown,
    )


def _thumbnail(image: Image.Image) -> str:
    """Returns a small JPEG as the text of a URL."""
    ratio = min(1.0, _SIDE / max(image.size))
    small = image.resize([max(1, round(side * ratio)) for side in image.size])
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _css(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)
