"""Making the weak and strong view of an unlabeled image, from decoded pixels to normalized tensors.

The weak view is made image by image on the CPU, the strong one for the batch on the device:
python benchmarks/views.py [--peer imas=PATH] [--data VOC]
"""

import common
import numpy as np
import peers
import torch
from peer_imas import Imas
from photographs import Photographs, photographs
from torch import Tensor

from semiseg.augment import intensity
from semiseg.augment.views import Views, make_batch
from semiseg.data import weak
from semiseg.data.dataset import DataConfig
from semiseg.engine.runtime import Runtime
from semiseg.rng import fold_in
from semiseg.types import LoadedBatch, Normalization, SemiBatch

VIEWS = Views(strong=(intensity.Config(),))


def weak_views(images: list[Tensor], crop: int, round_: int) -> LoadedBatch:
    """Makes weak views as a loader's worker does, but of unlabeled images only."""
    config = DataConfig(layout="voc", root=".", crop=crop)
    params = [
        weak.sample(fold_in(round_, "weak", number), (image.shape[1], image.shape[2]), config)
        for number, image in enumerate(images)
    ]
    nothing = torch.empty(0, dtype=torch.int64)
    return LoadedBatch(
        image=torch.empty(0, 3, crop, crop, dtype=torch.uint8),
        label=torch.empty(0, crop, crop, dtype=torch.uint8),
        weak=torch.stack([weak.apply_image(image, each) for image, each in zip(images, params, strict=True)]),
        valid=torch.stack([weak.valid(each) for each in params]),
        labeled_index=nothing,
        index=torch.arange(len(images)),
    )


def random_batch(batch: int, side: int, device: torch.device) -> LoadedBatch:
    """Makes a batch of unlabeled images of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    return LoadedBatch(
        image[:0], image[:0, 0], image, torch.ones_like(image[:, 0], dtype=torch.bool), torch.empty(0).long(),
        torch.arange(batch),
    ).to(device)  # fmt: skip


def made(loaded: LoadedBatch, step: int) -> SemiBatch:
    """Makes the strong views of a batch that has no labeled images."""
    return make_batch(loaded, VIEWS, Normalization(), 0, step, whole_size=len(loaded.weak))


def measure(run: common.Settings, results: common.Results) -> None:
    """Times both pipelines on the same images, on one core, and how ours grows."""
    number, crop, batch = run.size((32, 321, 16), (64, 513, 16), (8, 32, 4))
    Runtime(run.device.type)  # sets the process up as training does
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    with photographs(run.data, number * 4 // 3) as photos:
        results.settings |= {"images": photos.describe(), "crop, px": crop, "batch": batch, "threads": 1}
        compare(run, results, photos, crop, batch)
    torch.set_num_threads(usual)
    if run.brief:
        return

    def at(batch: int, side: int) -> object:
        loaded, turn = random_batch(batch, side, run.device), iter(range(10**9))
        return lambda: made(loaded, next(turn))

    sides, batches = run.size((129, 257, 513), (129, 257, 513), (17, 33)), run.size((1, 4, 16), (4, 16, 64), (1, 2))
    results.grow("strong views", "px an image", {side * side: at(batches[1], side) for side in sides}, 15)
    results.grow("strong views", "images a batch", {batch: at(batch, sides[1]) for batch in batches}, 15)
    results.note("Each call draws other operations, so that times vary; growth is measured with all threads.")


def compare(run: common.Settings, results: common.Results, photos: Photographs, crop: int, batch: int) -> None:
    """Times our pipeline and the peer's, for each image."""
    opened = [photos.open(name) for name in photos.unlabeled]
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in opened]
    turn = iter(range(10**9))

    def ours() -> None:
        number = next(turn)
        for first in range(0, len(images), batch):
            loaded = weak_views(images[first : first + batch], crop, number)
            made(loaded.to(run.device), number)

    loaded = weak_views(images[:batch], crop, 0).to(run.device)
    candidates = {"semiseg, an image": ours}
    if path := run.peers.get("imas"):
        peer = Imas(path, run.device)
        results.peers["imas"] = peer.commit
        item = peer.views(photos.long_side, crop)

        def theirs() -> None:
            with peers.as_written_for(run.device):
                for image, mask in opened:
                    for view in item(image, mask):
                        view.to(run.device)

        candidates["imas, an image"] = theirs
    results.time(candidates, usual=9, per=len(images))
    parts = {
        "semiseg, weak view, an image": lambda: weak_views(images[:batch], crop, next(turn)),
        "semiseg, strong view and normalization, an image": lambda: made(loaded, next(turn)),
    }
    results.time(parts, usual=9, per=min(batch, len(images)))
    if "imas" in results.peers:
        results.ratio("imas / semiseg", "imas, an image", "semiseg, an image")
        results.note("Theirs also takes the mask along, of unlabeled images too: so does their data set.")


if __name__ == "__main__":
    common.main("views", __doc__, measure)
