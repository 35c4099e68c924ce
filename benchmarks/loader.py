"""Images a second from files on disk to batches on the device, by number of worker processes.

It measures weak views alone, and weak and strong views as a step needs them:
python benchmarks/loader.py [--peer imas=PATH] [--peer unimatch=PATH] [--data VOC]
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import common
import peers
import torch
from peer_imas import Imas
from peer_unimatch import UniMatch
from photographs import Photographs, photographs
from views import VIEWS

from semiseg import data
from semiseg.augment.views import Views, make_batch
from semiseg.data.dataset import Dataset
from semiseg.data.layouts.voc import Config
from semiseg.data.loader import train_loader
from semiseg.engine.runtime import Runtime
from semiseg.types import Normalization


def dataset(photos: Photographs, crop: int, workers: int, cache: bool = False) -> tuple[Dataset, Config]:
    """Loads the same images, masks and lists that the peers read."""
    config = Config(
        root=photos.root, masks="SegmentationClassAug", labeled="labeled.txt", unlabeled="unlabeled.txt",
        val="val.txt", crop=crop, workers=workers, cache=cache,
    )  # fmt: skip
    return data.load(config), config


def ours(
    photos: Photographs, crop: int, batch: int, workers: int, device: torch.device, strong: bool, cache: bool = False
) -> Iterator[Any]:
    """Yields our batches on the device."""
    images, config = dataset(photos, crop, workers, cache)
    batches = train_loader(images, config, Views(), batch_size=batch, seed=0, start=0, num_steps=10**6)
    for step, loaded in enumerate(batches):
        loaded = loaded.to(device)
        yield make_batch(loaded, VIEWS, Normalization(), 0, step) if strong else loaded


def rate(start: Callable[[], Iterator[Any]], images: int, skip: int, number: int, device: torch.device) -> float:
    """Measures the images a second of a new iterator, after the batches that its workers had prepared."""
    batches = start()
    for _ in range(skip):
        next(batches)
    common.synchronize(device)
    begin = time.perf_counter()
    for _ in range(number):
        next(batches)
    common.synchronize(device)
    seconds = time.perf_counter() - begin
    batches.close()  # type: ignore[attr-defined]
    return images * number / seconds


def measure(run: common.Settings, results: common.Results) -> None:
    """Measures rates by number of workers, and those of the peers. Loaders run in turn, never at the same time."""
    size, crop, batch, number = run.size((200, 321, 4, 12), (400, 513, 16, 12), (24, 32, 2, 2))
    counts = run.size((0, 1, 2), (0, 2, 4, 8, 16), (0, 1))
    main = 1 if run.tiny else 2
    usual = torch.get_num_threads()
    Runtime(run.device.type)  # sets the process up as training does
    if run.device.type == "cpu":
        torch.set_num_threads(1)
        results.settings["threads"] = 1
        results.note(
            "The training process has one thread: loader processes hold the cores that others would wait for. In "
            "training on a CPU they rest most of the time."
        )
    with photographs(run.data, size) as photos:
        results.settings |= {"images": photos.describe(), "crop, px": crop, "batch": f"{batch}+{batch}"}

        def of(workers: int, strong: bool) -> Callable[[], Iterator[Any]]:
            return lambda: ours(photos, crop, batch, workers, run.device, strong)

        starts = {f"semiseg, {main} workers, weak and strong views": of(main, True)}
        for kind, option in ((Imas, "imas"), (UniMatch, "unimatch")):
            if path := run.peers.get(option):
                peer = kind(path, run.device)
                results.peers[option] = peer.commit
                for each in (1, 2):  # they have two loaders: as many processes as ours, and twice as many
                    name = f"{option}, 2 x {each} workers, weak and strong views"
                    starts[name] = lambda peer=peer, each=each: peer.batches(photos, crop, batch, each)
        with peers.as_written_for(run.device):
            rates: dict[str, list[float]] = {name: [] for name in starts}
            for _ in range(run.times(9)):
                for name, start in starts.items():
                    rates[name].append(rate(start, 2 * batch, 5, number, run.device))
        for name, values in rates.items():
            results.figure(name, "images/s", *values)
        for option in results.peers:
            best = max(
                (name for name in rates if name.startswith(option)), key=lambda name: results.figures[name].median
            )
            results.ratio(f"semiseg / {option}", next(iter(starts)), best)
        if results.peers:
            results.note(
                "Peers have one loader for labeled and one for unlabeled images: 2 x 1 workers are as many processes "
                "as ours, 2 x 2 twice as many; the ratio is to the faster. UniMatch makes two strong views."
            )
        kept = {cache: partial(ours, photos, crop, batch, main, run.device, False, cache) for cache in (False, True)}
        lap = len(photos.unlabeled) // batch + 1  # number of batches after which every image is in memory
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(run.times(5)):
            for cache, start in kept.items():
                found[cache].append(rate(start, 2 * batch, lap + 2 * main, 2 * number, run.device))
        for cache, where in ((False, "files"), (True, "the cache")):
            results.figure(f"semiseg, {main} workers, weak views alone, from {where}", "images/s", *found[cache])
        results.ratio(
            "from the cache / from files", *(f"semiseg, {main} workers, weak views alone, from {where}"
                                             for where in ("the cache", "files"))
        )  # fmt: skip
        alone = {
            float(workers): [
                rate(of(workers, False), 2 * batch, 2 * workers + 1, number, run.device) for _ in range(run.times(3))
            ]
            for workers in counts
        }
        results.growth_of("semiseg, weak views alone", "worker processes", "images/s", alone)

        def strong(side: int, batch: int) -> list[float]:
            def start() -> Iterator[Any]:
                return ours(photos, side, batch, main, run.device, True)

            return [rate(start, 2 * batch, 2 * main + 1, number, run.device) for _ in range(run.times(3))]

        sides = run.size((161, 321, 641), (257, 513, 1025), (16, 32))
        batches = run.size((2, 4, 8), (4, 8, 16), (2, 4))
        name = "semiseg, weak and strong views"
        results.growth_of(name, "px a crop", "images/s", {side * side: strong(side, batch) for side in sides})
        results.growth_of(name, "labeled images a batch", "images/s", {each: strong(crop, each) for each in batches})
    torch.set_num_threads(usual)


if __name__ == "__main__":
    common.main("loader", __doc__, measure)
