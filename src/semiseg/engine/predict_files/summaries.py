"""The files that cover all images of an output folder: areas.csv, coco.json, classes.png.

They are put together from the parts of the single images in `.parts`, at the end of each prediction. So predictions of
several commands add up, and an interrupted one leaves no row twice.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from semiseg.engine.pictures import legend
from semiseg.engine.predict_files.outputs import PARTS, category_ids, read_json
from semiseg.errors import UserError
from semiseg.files import mark_of, save_bytes, save_image
from semiseg.types import ClassTable

COCO = "coco.json"
NAMES = {"areas": "areas.csv", "coco": COCO, "overlays": "classes.png"}  # kind of output -> its summary
_WRITTEN = "written.json"  # in `.parts`: digests of the summaries that predictions wrote


def check(out: Path, kinds: Sequence[str], digests: dict[str, str], replaced: set[Path], classes: ClassTable) -> None:
    """Checks that the summaries can be written later.

    Args:
        out: the output folder.
        kinds: the kinds of outputs.
        digests: what tells this predictor from others, by the kind of a part.
        replaced: parts that will be written anew.
        classes: the meaning of the class indices.

    Raises:
        UserError: a file of the same name comes from elsewhere, or the folder holds parts of another predictor.
    """
    written = _written(out)
    for kind in kinds:
        path = out / NAMES[kind] if kind in NAMES else None
        if path is not None and path.exists():
            own = (
                mark_of(path) == _mark_of(classes)
                if kind == "overlays"
                else _digest(path) in written.get(path.name, ())
            )
            if not own:
                raise UserError(f"{path}: exists already; name another folder with --out")
        if kind in digests:
            for part, content in _parts(out, kind):
                if part not in replaced and content.get("predictor") != digests[kind]:
                    raise UserError(
                        f"{part}: exists already, from another checkpoint or other options; name another folder with "
                        "--out"
                    )


def write(out: Path, kinds: Sequence[str], classes: ClassTable) -> None:
    """Writes the summaries.

    Raises:
        UserError: there is no space or no permission.
    """
    if "areas" in kinds:
        _save(out, NAMES["areas"], _areas(out, classes).encode(errors="surrogateescape"))
    if "coco" in kinds:
        content = json.dumps(_coco(out, classes), ensure_ascii=False, separators=(",", ":"))
        _save(out, NAMES["coco"], content.encode(errors="surrogateescape"))
    if "overlays" in kinds and not (out / NAMES["overlays"]).exists():
        save_image(legend(classes), out / NAMES["overlays"], _mark_of(classes))


def is_unchanged(path: Path) -> bool:
    """Returns whether areas.csv or coco.json is as a prediction wrote it."""
    return _digest(path) in _written(path.parent).get(path.name, ())


def _areas(out: Path, classes: ClassTable) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "class", "pixels", "share"))
    for _, part in _parts(out, "areas"):
        total = sum(part["pixels"])
        for name, pixels in zip(classes.names, part["pixels"], strict=True):
            table.writerow((part["image"], name, pixels, f"{pixels / total:.6f}"))
    return text.getvalue()


def _coco(out: Path, classes: ClassTable) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for _, part in _parts(out, "coco"):
        images.append({"id": len(images) + 1} | part["image"])
        for annotation in part["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": len(images)} | annotation)
    categories = [
        {"id": number, "name": classes.names[index], "supercategory": ""}
        for index, number in category_ids(classes).items()
    ]
    return {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}


def _parts(out: Path, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the parts of a kind. One that somebody has changed is not ours, and is left out."""
    for path in sorted((out / PARTS).rglob(f"*.{kind}.json")):
        content = read_json(path)
        if content is not None:
            yield path, content


def _save(out: Path, name: str, content: bytes) -> None:
    """Writes a summary after its digest, so that an interruption between the two leaves no file that seems foreign."""
    path, digest = out / name, hashlib.blake2b(content, digest_size=16).hexdigest()
    written = _written(out)
    if _digest(path) == digest:
        return
    if digest not in written.get(name, ()):
        written[name] = [*written.get(name, [])[-1:], digest]
        save_bytes(json.dumps(written).encode(), out / PARTS / _WRITTEN)
    save_bytes(content, path)


def _written(out: Path) -> dict[str, list[str]]:
    try:
        return {name: [*digests] for name, digests in json.loads((out / PARTS / _WRITTEN).read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _digest(path: Path) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _mark_of(classes: ClassTable) -> str:
    return hashlib.blake2b(repr((classes.names, classes.colors)).encode(), digest_size=16).hexdigest()
