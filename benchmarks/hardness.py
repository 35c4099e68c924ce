"""Easiness of a batch against a straightforward per-image numpy version of the same definition.

16 images of 513 x 513, 21 classes: python benchmarks/hardness.py
"""

import common
import numpy as np
import torch

from semiseg.hardness import easiness
from semiseg.types import Prediction

BATCH, CLASSES, SIDE, CONFIDENCE, IGNORED = 16, 21, 513, 0.95, 0


def predictions() -> tuple[Prediction, Prediction]:
    """Two blocky label maps that agree on about nine pixels in ten."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(CLASSES, (BATCH, 1, 9, 9), generator=generator).float()
    first = torch.nn.functional.interpolate(blocks, (SIDE, SIDE))[:, 0].long()
    other = torch.rand(first.shape, generator=generator) < 0.1
    second = torch.where(other, torch.randint(CLASSES, first.shape, generator=generator), first)
    first_confidence, second_confidence = (0.7 + 0.3 * torch.rand(2, *first.shape, generator=generator)).unbind()
    return Prediction(first, first_confidence, CLASSES), Prediction(second, second_confidence, CLASSES)


def per_image_numpy(student: Prediction, teacher: Prediction) -> list[float]:
    """Eq. 5-7 image by image and class by class, as one would write them down."""
    found = []
    for i in range(BATCH):
        s, t = student.label[i].numpy(), teacher.label[i].numpy()
        iou, s_count, t_count = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros(CLASSES)
        for c in range(CLASSES):
            in_s, in_t = s == c, t == c
            union = np.logical_or(in_s, in_t).sum()
            iou[c] = np.logical_and(in_s, in_t).sum() / union if union else 0
            s_count[c], t_count[c] = in_s.sum(), in_t.sum()
        s_count[IGNORED] = t_count[IGNORED] = 0
        by_student = (iou * s_count).sum() / s_count.sum() * (student.confidence[i].numpy() >= CONFIDENCE).mean()
        by_teacher = (iou * t_count).sum() / t_count.sum() * (teacher.confidence[i].numpy() >= CONFIDENCE).mean()
        found.append(float(by_student + by_teacher) / 2)
    return found


def main() -> None:
    """Checks that both agree, then times them in turns."""
    args = common.arguments(__doc__)
    student, teacher = predictions()

    def ours() -> torch.Tensor:
        return easiness(student, teacher, CONFIDENCE, ignore_class=IGNORED)

    torch.testing.assert_close(ours(), torch.tensor(per_image_numpy(student, teacher)), atol=1e-6, rtol=0)
    times = common.interleaved({"semiseg": ours, "numpy": lambda: per_image_numpy(student, teacher)}, args.repeats)
    times["numpy / semiseg"] = times["numpy"]["median_s"] / times["semiseg"]["median_s"]
    shape = {"batch": BATCH, "classes": CLASSES, "side_px": SIDE, "threads": args.threads}
    common.write("hardness", args.machine, {**shape, **times})


if __name__ == "__main__":
    main()
