"""Evaluating an image of Cityscapes' size, in sliding windows and whole, at equal mIoU.

ResNet-50, DeepLabV3+ with output stride 16, 1024 x 2048 px, 19 classes, windows of 769 px, fp32 and bf16:
python benchmarks/evaluation.py [--peer imas=PATH] [--peer unimatch=PATH]
"""

from collections.abc import Callable

import common
import peer_imas
import peer_unimatch
import torch
import torch.nn.functional as F
from photographs import street
from step import wrapped

from semiseg.data.loader import EvalItem
from semiseg.engine.evaluate import evaluate
from semiseg.engine.runtime import Runtime
from semiseg.models.build import Config as ModelConfig
from semiseg.models.build import Network, build
from semiseg.recipe.engine import EvaluateConfig, Precision
from semiseg.rng import seeded

CLASSES = 19  # UniMatch's code supports no other number
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def fit(network: Network, item: EvalItem, side: int, steps: int, device: torch.device) -> None:
    """Trains on crops of the image, so that mIoU has a meaning. This is not timed."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    image = network.normalization(item.image[None].to(device))[0]
    height, width = item.mask.shape
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (
            1 - step / steps
        )  # a small rate at the end lets batch statistics settle
        tops, lefts = (torch.randint(size - side + 1, (4,), generator=generator).tolist() for size in (height, width))
        places = [(slice(top, top + side), slice(left, left + side)) for top, left in zip(tops, lefts, strict=True)]
        crops = torch.stack([image[:, rows, columns] for rows, columns in places])
        label = torch.stack([item.mask[rows, columns] for rows, columns in places]).long().to(device)
        optimizer.zero_grad()
        F.cross_entropy(network(crops), label).backward()
        optimizer.step()
    network.eval()


def item_of(height: int) -> EvalItem:
    """Draws an image that is twice as wide as high."""
    image, mask = street(height)
    return EvalItem(0, torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask))


def network_of(run: common.Settings, num_classes: int) -> Network:
    """Builds our own network."""
    with seeded(0):
        encoder = run.size("resnet50", "resnet50", "tu-test_efficientnet")
        network = build(ModelConfig(encoder=encoder, weights=None), num_classes)
    return network.to(run.device).to(memory_format=torch.channels_last)


def measure(run: common.Settings, results: common.Results) -> None:
    """Times our evaluation with our network, and for each peer its loop and ours with the peer's network."""
    height, window, side, steps = run.size((1024, 769, 193, 40), (1024, 769, 193, 40), (66, 49, 33, 2))
    item, runtimes = item_of(height), {name: Runtime(run.device.type, name) for name in PRECISIONS}
    wide = window * 5 // 6
    modes = {
        "sliding": EvaluateConfig(mode="sliding", window=window),
        f"sliding by {wide} px": EvaluateConfig(mode="sliding", window=window, stride=wide),
        "whole": EvaluateConfig(),
    }
    windows = [mode for mode in modes if mode != "whole"]
    results.settings |= {"image, px": f"{height} x {2 * height}", "window, px": window, "classes": CLASSES}

    def ours(network: Network, mode: str, precision: Precision) -> float:
        iou = evaluate({"it": (network,)}, [item], CLASSES, modes[mode], runtimes[precision])["it"].iou
        return float(torch.tensor(iou).nan_to_num().mean())  # as the peers do: absent classes count as 0

    own = network_of(run, CLASSES)
    candidates: dict[str, Callable[[], object]] = {
        f"semiseg, {mode}, {precision}": lambda mode=mode, precision=precision: ours(own, mode, precision)
        for mode in modes
        for precision in PRECISIONS
    }
    for option, kind in (("imas", peer_imas.Imas), ("unimatch", peer_unimatch.UniMatch)):
        if path := run.peers.get(option):
            peer = kind(path, run.device)
            results.peers[option] = peer.commit
            candidates |= pair(results, run, peer, item, window, (side, steps), windows, ours)
    results.time(candidates, usual=3, warm_up=1)
    for option in results.peers:
        theirs = f"{option}, sliding"
        for mode in windows:
            for precision in PRECISIONS:
                name = f"semiseg, network of {option}, {mode}, {precision}"
                head = f"{option} / semiseg {precision}, {mode}"
                results.ratio(f"{head}, same network", theirs, name)
                results.ratio(f"{head}, each its own network", theirs, f"semiseg, {mode}, {precision}")
                results.ratio(f"{head}, mIoU", f"{theirs}, mIoU", f"{name}, mIoU")
    if results.peers:
        results.note(
            "The network in both loops was fitted to the drawn image beforehand, so that mIoU means something; it is "
            "that of the classes in the image. The peers' last windows end at the border and are smaller; ours are all "
            "of the same size and cover more pixels. Both are two thirds of a window apart, as is usual; by "
            f"{wide} px they are further apart, and six cover the image instead of eight."
        )
    items = {2 * size * size: item_of(size) for size in run.size((128, 256, 512), (256, 512, 1024), (32, 66))}
    results.grow(
        "whole", "px an image",
        {
            pixels: lambda each=each: evaluate({"it": (own,)}, [each], CLASSES, modes["whole"], runtimes["fp32"])
            for pixels, each in items.items()
        },
        5,
    )  # fmt: skip
    growing = {classes: network_of(run, classes) for classes in run.size((21, 64, 150), (21, 64, 150), (21, 32))}
    results.grow(
        "whole", "classes",
        {
            classes: lambda network=network, classes=classes: evaluate(
                {"it": (network,)}, [items[min(items)]], classes, modes["whole"], runtimes["fp32"]
            )
            for classes, network in growing.items()
        },
        5,
    )  # fmt: skip


def pair(
    results: common.Results, run: common.Settings, peer: peer_imas.Imas | peer_unimatch.UniMatch, item: EvalItem,
    window: int, fitting: tuple[int, int], modes: list[str], ours: Callable[[Network, str, Precision], float],
) -> dict[str, Callable[[], float]]:  # fmt: skip
    """Makes candidates of a peer's loop and ours, both with its network, and adds their mIoU to the results.

    Both loops count a class that occurs nowhere as 0. The mIoU in the results is the mean over classes in the image.
    """
    with seeded(0):
        theirs = peer.network(CLASSES)
    network = wrapped(theirs).to(memory_format=torch.channels_last)
    fit(network, item, *fitting, run.device)
    with seeded(0):
        copy = peer.network(CLASSES)  # the same weights in their own memory layout
    copy.load_state_dict(theirs.state_dict())
    copy.eval()
    image, mask = network.normalization(item.image[None].to(run.device)), item.mask[None].long()

    def loop() -> float:
        return peer.sliding(copy, image, mask, window, CLASSES)

    runs: dict[str, Callable[[], float]] = {f"{peer.name}, sliding": loop}
    for mode in modes:
        for precision in PRECISIONS:
            name = f"semiseg, network of {peer.name}, {mode}, {precision}"
            runs[name] = lambda mode=mode, precision=precision: ours(network, mode, precision)
    for name, evaluated in runs.items():
        results.figure(f"{name}, mIoU", "1", evaluated() * CLASSES / len(item.mask.unique()))
    return runs


if __name__ == "__main__":
    common.main("evaluation", __doc__, measure)
