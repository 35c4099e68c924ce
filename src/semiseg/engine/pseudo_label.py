"""Writes pseudo-labels of unlabeled images, and how reliable they are: ST++ (Yang et al., CVPR 2022).

Only images are read, never a mask of an unlabeled image.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from semiseg.data.dataset import Sample
from semiseg.data.pseudo import RELIABILITY, write_reliability
from semiseg.data.read import read_image
from semiseg.engine.pictures import index_image
from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files.options import Options
from semiseg.engine.predict_files.raster import InMemory
from semiseg.engine.predict_files.segment import segment
from semiseg.errors import UserError
from semiseg.files import mark_of, save_bytes, save_image
from semiseg.metrics import add_confusion, scores


def reliability(earlier: Sequence[UInt8[Tensor, "h w"]], last: UInt8[Tensor, "h w"], num_classes: int) -> float:
    """Computes how reliable the pseudo-labels of an image are: how near earlier predictions are to the last one.

    Args:
        earlier: predictions of earlier checkpoints of the same run, at least one.
        last: the prediction of the last one.
        num_classes: number of classes.

    Returns:
        The mean over the earlier ones of their mIoU with the last one, in [0, 1]. Classes that are in neither of two
        predictions are left out of their mIoU.
    """
    blank = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    found = [scores(add_confusion(blank, one.long(), last.long())).miou for one in earlier]
    return sum(found) / len(found)


def write(
    predictor: Predictor,
    course: Sequence[Predictor],
    samples: Sequence[Sample],
    out: Path,
    options: Options,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the mask of each image, `out/<name>.png`, and if earlier checkpoints are given the list of reliability.

    A mask has a mark, which tells the network and the options. So an interrupted call goes on.

    Args:
        predictor: the network whose predictions are the pseudo-labels.
        course: the networks of the run's kept checkpoints, the last one at the end. With fewer than two there is no
            list of reliability.
        samples: the images.
        out: the folder; it is made.
        options: flips and scales of the pseudo-labels. Reliability is measured on plain predictions.
        on_image: called with the number of images that are done and the number of all images.

    Raises:
        UserError: a mask is there already that has another mark, or an image cannot be read.
    """
    runtime = predictor.runtime
    mark = _mark(predictor, course, options)
    own, rows = samples[runtime.rank :: runtime.world_size], []
    with runtime.together():
        for done, sample in enumerate(own, 1):
            rows.append((sample.name, _one(predictor, course, sample, out / f"{sample.name}.png", options, mark)))
            on_image(min(done * runtime.world_size, len(samples)), len(samples))
        found = runtime.gather_lists(rows)
    if runtime.is_main and len(course) > 1:
        write_reliability(out / RELIABILITY, found)


def keep(samples: Sequence[Sample], out: Path) -> None:
    """Copies the masks of images that have a pseudo-label already.

    Raises:
        UserError: another file is there.
    """
    for sample in samples:
        assert sample.mask is not None
        assert sample.pseudo, f"{sample.name}: the mask is no prediction"
        path, content = out / f"{sample.name}{sample.mask.suffix}", sample.mask.read_bytes()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_bytes(content, path)
        elif path.read_bytes() != content:
            raise _taken(path)


def _one(
    predictor: Predictor, course: Sequence[Predictor], sample: Sample, path: Path, options: Options, mark: str
) -> float:
    """Writes the mask of an image if it is not there. Returns the reliability, 1 without earlier checkpoints."""
    if path.is_file():
        before, _, written = (mark_of(path) or "").partition(" ")
        if before != mark:
            raise _taken(path)
        return float(written)
    image = read_image(sample.image, white=predictor.white)
    label, _ = segment(predictor, InMemory(image), options)
    value = 1.0
    if len(course) > 1:
        *earlier, last = (each.predict(image) for each in course)
        value = reliability(earlier, last, len(predictor.classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(index_image(torch.from_numpy(label), predictor.classes), path, f"{mark} {value!r}")
    return value


def _taken(path: Path) -> UserError:
    return UserError(
        f"{path}: exists already, and is of another network or other options; name another folder with --out"
    )


def _mark(predictor: Predictor, course: Sequence[Predictor], options: Options) -> str:
    digest = hashlib.blake2b(repr(options.predicting).encode(), digest_size=16)
    for each in (predictor, *course):
        digest.update(each.fingerprint())
    return digest.hexdigest()
