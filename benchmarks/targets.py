"""Targets of speed: ratios of medians from one run, so that two machines are never compared.

In `on`, cpu means two cores and gpu one GPU.
"""

from dataclasses import dataclass
from typing import Literal

from common import Ratio, Record


@dataclass(frozen=True)
class Target:
    """A ratio that should be at least, or at most, `bound`."""

    suite: str
    ratio: str
    on: Literal["cpu", "gpu"]
    kind: Literal["at least", "at most"]
    bound: float
    says: str

    def verdict(self, value: float) -> str:
        """Says that the target was met, or by which factor it was missed."""
        factor = self.bound / value if self.kind == "at least" else value / self.bound
        return "met" if factor <= 1 else f"missed by a factor of {factor:.2f}"

    def concerns(self, record: Record) -> bool:
        """Returns whether the target is for this suite and kind of device."""
        return self.suite == record.suite and (self.on == "gpu") == record.device.startswith("cuda")


def found(target: Target, record: Record) -> Ratio | None:
    """Returns the ratio that belongs to a target, or None if it was not measured."""
    return next((ratio for ratio in record.ratios if target.concerns(record) and ratio.name == target.ratio), None)


SAME = "semiseg / imas, its network in both"

TARGETS = (
    Target("hardness", "imas / semiseg, from logits", "cpu", "at least", 5, "easiness of 16 x 21 x 513 x 513 logits"),
    Target("hardness", "imas / semiseg, from logits", "gpu", "at least", 100, "easiness of 16 x 21 x 513 x 513 logits"),
    Target("views", "imas / semiseg", "cpu", "at least", 2, "weak and strong view of an image"),
    Target("views", "imas / semiseg", "gpu", "at least", 2, "weak and strong view of an image"),
    Target("loader", "semiseg / imas", "cpu", "at least", 2, "images a second with strong views"),
    Target("loader", "semiseg / imas", "gpu", "at least", 2, "images a second with strong views"),
    Target("step", "semiseg / imas", "cpu", "at most", 0.75, "time of a step, ResNet-50, 321 px, 4+4, fp32"),
    Target("step", "semiseg / imas", "gpu", "at most", 1 / 3, "time of a step, ResNet-50, 513 px, 16+16"),
    Target("step", "semiseg / imas, memory", "gpu", "at most", 0.5, "memory of a step, ResNet-50, 513 px, 16+16"),
    Target("step", SAME, "cpu", "at most", 0.75, "time of a step, the very same network"),
    Target("step", SAME, "gpu", "at most", 1 / 3, "time of a step, the very same network"),
    Target("step", f"{SAME}, memory", "gpu", "at most", 0.5, "memory of a step, the very same network"),
    Target("step", "share beyond forwards and backward", "gpu", "at most", 0.05, "of a step, what is no network"),
    Target("step", "share of input wait", "gpu", "at most", 0.03, "of a step, waiting for images"),
    Target(
        "step", "iMAS / supervised, measured / needed", "cpu", "at most", 1.1, "a step of iMAS over a supervised one"
    ),
    Target(
        "step", "iMAS / supervised, measured / needed", "gpu", "at most", 1.1, "a step of iMAS over a supervised one"
    ),
    Target("evaluation", "imas / semiseg fp32, sliding, same network", "cpu", "at least", 2, "sliding, 1024 x 2048 px"),
    Target("evaluation", "imas / semiseg bf16, sliding, same network", "cpu", "at least", 2, "sliding, 1024 x 2048 px"),
    Target(
        "evaluation", "imas / semiseg bf16, sliding by 640 px, same network", "cpu", "at least", 2, "the same, wider"
    ),
    Target("evaluation", "imas / semiseg bf16, sliding, same network", "gpu", "at least", 2, "sliding, 1024 x 2048 px"),
    Target("predict", "share of input wait, 500 px / allowed", "cpu", "at most", 1, "of predicting, input wait: 5 %"),
    Target("predict", "share of input wait, 4000 px / allowed", "cpu", "at most", 1, "the same, 12 megapixels"),
    Target("startup", "semiseg --help / allowed", "cpu", "at most", 1, "`semiseg --help` in half a second"),
    Target("startup", "the same beyond imports / allowed", "cpu", "at most", 1, "the first step of a run in 10 s"),
    Target("pages", "page of 1 runs / allowed", "cpu", "at most", 1, "`semiseg report` of 50,000 steps in 20 s"),
    Target("pages", "size of a page of 1 runs / allowed", "cpu", "at most", 1, "the same in 15 MB"),
    Target("pages", "pictures, share of an evaluation / allowed", "cpu", "at most", 1, "pictures in 2 % of its time"),
    Target(
        "smoke", "synchronized, difference / allowed", "gpu", "at most", 1, "losses of ten steps with NCCL and SyncBN"
    ),
    Target("smoke", "low precision, difference / allowed", "gpu", "at most", 1, "losses of ten steps in fp16"),
    Target("correctness", "largest difference / allowed", "gpu", "at most", 1, "losses of ten steps, GPU against CPU"),
)
