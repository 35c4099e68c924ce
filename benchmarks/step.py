"""What iMAS adds to a step beyond the network's own forwards and backward.

ResNet-50, 321 x 321, 4 labelled and 4 unlabelled images, fp32: python benchmarks/step.py
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import common
import torch

from semiseg.augment.views import make_batch
from semiseg.methods import imas
from semiseg.models.build import Config, Network, build
from semiseg.rng import seeded
from semiseg.types import ClassTable, LoadedBatch, Progress

BATCH, CLASSES, SIDE = 4, 21, 321
EXTRAS = ("easiness", "confident_ratio", "blend", "hard_easy_partners", "sample_boxes", "triggered", "paste", "ema_")


def loaded_batch() -> LoadedBatch:
    """Random uint8 images and labels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    label = torch.randint(CLASSES, (BATCH, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    index = torch.arange(BATCH)
    return LoadedBatch(image[0], label, image[1], torch.ones(BATCH, SIDE, SIDE, dtype=torch.bool), index, index)


def main() -> None:
    """Times whole steps, and inside them every function of iMAS that is not a pass through the network."""
    args = common.arguments(__doc__)
    classes = ClassTable.of([str(i) for i in range(CLASSES)], background=0)

    def network() -> Network:
        with seeded(0):
            return build(Config(encoder="resnet50", weights=None), CLASSES)

    method = imas.Method(imas.Config(), network, classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(method.param_groups(10.0), lr=1e-3, momentum=0.9)
    loaded = loaded_batch()
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            found = function(*positional, **named)
            spent[name] += time.perf_counter() - begin
            return found

        return run

    def step(number: int) -> None:
        begin = time.perf_counter()
        batch = make_batch(loaded, method.views, method.student.normalisation, 0, number)
        spent["views (uint8 to strong, normalised)"] += time.perf_counter() - begin
        begin = time.perf_counter()
        losses = method(batch, Progress(number, 1000))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step(number)
        spent["step"] += time.perf_counter() - begin

    rows: dict[str, list[float]] = defaultdict(list)
    patches = [patch.object(imas, name, timed(name, getattr(imas, name))) for name in EXTRAS]
    for active in patches:
        active.start()
    for number in range(args.repeats + 2):
        spent.clear()
        step(number)
        if number >= 2:
            for name, seconds in spent.items():
                rows[name].append(seconds)
            rows["iMAS beyond the network"].append(sum(spent[name] for name in EXTRAS))
            rows["share of the step"].append(rows["iMAS beyond the network"][-1] / spent["step"])
    for active in patches:
        active.stop()
    share = common.summary(rows.pop("share of the step"))
    results = {name: common.summary(seconds) for name, seconds in rows.items()}
    shape = {"encoder": "resnet50", "batch": f"{BATCH}+{BATCH}", "side_px": SIDE, "threads": args.threads}
    common.write("step", args.machine, {**shape, **results, "share of the step": share["median_s"]})


if __name__ == "__main__":
    main()
