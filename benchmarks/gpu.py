"""Runs all benchmarks that need a GPU in at most nine minutes, the most valuable first.

python benchmarks/gpu.py [--peer NAME=PATH] [--data VOC-MINI] [--minutes 9] [--suite NAME]

With --rehearse the same code runs on the CPU with tiny sizes; its figures mean nothing, so name a folder for them with
--out. The results of a suite are written when the suite ends. `benchmarks/carry.py` makes a folder with everything that
a bare machine needs for this script.
"""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import common
import hardness
import memory
import smoke
import step
import torch
import training
import views
from targets import TARGETS, found
from torch import Tensor, nn

from semiseg.augment import intensity
from semiseg.augment.ops import OPS
from semiseg.augment.views import make_batch
from semiseg.engine import step as engine_step
from semiseg.errors import UserError
from semiseg.models import build
from semiseg.rng import fold_in, seeded
from semiseg.types import LoadedBatch, Losses, Normalization, SemiBatch

STEPS, CLASSES, ALLOWED = 10, 5, 1e-4


@dataclass(frozen=True)
class Entry:
    """One suite of the list."""

    suite: str
    title: str
    measure: Callable[[common.Settings, common.Results], None]
    seconds: float  # at most; infinite: all the time that is left


class OutOfTimeError(Exception):
    """The time of a suite has run out."""


def correctness(run: common.Settings, results: common.Results) -> None:
    """Takes the same steps on both devices, with unlabeled images that contribute to the loss.

    Strong views are made on the CPU for both. A gray level may be rounded up on one device and down on the other, which
    alone moves a loss by 1e-3: the batch shows blocks of one color. How far views differ is a figure of its own.
    CutMix takes random partners. All images are equally easy for new networks, up to rounding errors, which would
    decide about the pairs of hard and easy images and move a loss by several percent.
    """
    side, batch, encoder = run.size((129, 4, "resnet18"), (129, 4, "resnet18"), (33, 2, "tu-test_efficientnet"))
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "steps": STEPS}
    with views_of_the_cpu() as views_differ:
        rows = [steps(torch.device("cpu"), encoder, batch, side), steps(run.device, encoder, batch, side)]
    totals = [[float(each.total) for each in row] for row in rows]
    differences = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(*totals, strict=True)]
    confident = [float(each.scalars["confident"]) for each in rows[0]]
    results.figure("confident pixels of unlabeled images, share", "1", *confident)
    results.figure("values of strong views that differ, share", "1", *(share for share, _ in views_differ))
    results.figure("largest difference of strong views, gray levels", "1", *(levels for _, levels in views_differ))
    for name, levels in operations_differ(loaded_images(batch, side), run.device).items():
        results.figure(f"largest difference of {name} alone, gray levels", "1", levels)
    results.figure("relative difference of a loss, first step", "1", differences[0])
    results.figure("largest relative difference of a loss", "1", max(differences))
    results.figure("allowed", "1", ALLOWED)
    results.ratio("largest difference / allowed", "largest relative difference of a loss", "allowed")


@contextmanager
def views_of_the_cpu() -> Iterator[list[tuple[float, float]]]:
    """Makes all views on the CPU. Yields a list of how views of each device differ from them: share, gray levels."""
    differ: list[tuple[float, float]] = []

    def make(loaded: LoadedBatch, *settings: Any) -> SemiBatch:
        there, made = make_batch(loaded, *settings), make_batch(loaded.to(torch.device("cpu")), *settings)
        scale = 255 * torch.tensor(Normalization().std)[:, None, None]
        for ours, theirs in zip(made.strong, there.strong, strict=True):
            levels = ((ours - theirs.cpu()) * scale).abs()
            differ.append((float((levels > 0.5).float().mean()), float(levels.max())))
        device = loaded.image.device
        strong = tuple(view.to(device) for view in made.strong)
        return replace(there, image=made.image.to(device), weak=made.weak.to(device), strong=strong)

    with patch.object(engine_step, "make_batch", make):
        yield differ


def loaded_images(batch: int, side: int) -> Tensor:
    """Returns uint8 images of colored blocks, on the CPU."""
    return step.loaded_batch(batch, side, CLASSES, torch.device("cpu")).weak


def operations_differ(image: Tensor, device: torch.device) -> dict[str, float]:
    """Applies each operation of Table 1 alone on both devices. Returns the largest difference of each, gray levels."""
    found = {}
    for name in OPS:
        pool = intensity.Config(ops=(name,), num_ops=1)
        drawn = pool.sample(fold_in(0, "operations", name), len(image))
        there = pool.apply(image.to(device), drawn).cpu()
        found[name] = float((pool.apply(image, drawn).int() - there.int()).abs().max())
    return found


def in_double_precision(encoder: str) -> build.Network:
    """Builds a network that computes in fp64: rounding errors, which grow in training, stay far below real errors.

    It has no dropout, because dropout draws other numbers on a GPU than on a CPU.
    """
    options = {"decoder_aspp_dropout": 0.0}
    with seeded(0, "correctness"):
        network = build.build(build.Config(encoder=encoder, weights=None, options=options), CLASSES).double()
    network.net.encoder = nn.Sequential(_Double(), network.net.encoder)
    network.net.segmentation_head = nn.Sequential(network.net.segmentation_head, _Float())
    return network


class _Double(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.double()


class _Float(nn.Module):
    """Makes fp32 logits, as the method expects them. The factor makes some pixels of a new network confident."""

    def forward(self, logits: Tensor) -> Tensor:
        return 8 * logits.float()


def steps(device: torch.device, encoder: str, batch: int, side: int) -> list[Losses]:
    """Takes the steps on a device and returns their losses."""
    ours = step.Ours(
        device, num_classes=CLASSES, threshold=0.3, lr=1e-5, cutmix="standard",
        network=lambda: in_double_precision(encoder),
    )  # fmt: skip
    loaded = step.loaded_batch(batch, side, CLASSES, device)
    return [ours.take(turned(loaded, number)) for number in range(STEPS)]


def turned(loaded: LoadedBatch, number: int) -> LoadedBatch:
    """Makes the batch of a step from one batch. It is the same on every device."""
    return replace(loaded, image=loaded.image.roll(number, -1), label=loaded.label.roll(number, -1),
                   weak=loaded.weak.roll(number, -2))  # fmt: skip


def entry(suite: str, module: Any, seconds: float) -> Entry:
    """Makes the entry of a suite that is a module."""
    return Entry(suite, common.title(str(module.__doc__)), module.measure, seconds)


LIST = (
    Entry("correctness", "Losses of the same ten steps on a GPU and on a CPU, the network in fp64", correctness, 60),
    entry("step", step, 150),
    entry("views", views, 45),
    entry("hardness", hardness, 30),
    entry("memory", memory, 30),
    entry("smoke", smoke, 60),
    entry("training", training, float("inf")),
)


def run_all(settings: common.Settings, minutes: float, entries: tuple[Entry, ...]) -> list[Path]:
    """Runs the suites in order. If one fails or takes too long, its results so far are written, with a note."""
    end = time.monotonic() + minutes * 60
    signal.signal(signal.SIGALRM, _out_of_time)
    paths = []
    for each in entries:
        left = end - time.monotonic()
        if left < 1:
            print(f"gpu: {each.suite} was left out: {minutes:g} minutes are over", file=sys.stderr)
            continue
        paths.append(run_one(replace(settings, seconds=min(each.seconds, left), brief=True), each, left))
        common.settle(settings.device)
    print(f"gpu: {(minutes * 60 - end + time.monotonic()) / 60:.1f} of {minutes:g} minutes taken", flush=True)
    return paths


def run_one(settings: common.Settings, each: Entry, left: float) -> Path:
    """Measures one suite and writes its results, also after an error."""
    assert settings.seconds is not None
    begin, results = time.monotonic(), common.Results(settings)
    print(f"== {each.suite}: {each.title} ({settings.seconds:.0f} of {left:.0f} seconds left)", flush=True)
    signal.setitimer(signal.ITIMER_REAL, settings.seconds)
    try:
        each.measure(settings, results)
    except OutOfTimeError:
        results.note(f"Cut off after {settings.seconds:.0f} s: what is missing was not measured.")
    except torch.OutOfMemoryError as error:
        results.note(f"Cut off, out of memory: {str(error).splitlines()[0]}")
    except Exception as error:  # the other suites still run
        traceback.print_exc()
        results.note(f"Failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"== {each.suite}: {time.monotonic() - begin:.0f} s", flush=True)
    return common.write(results.record(each.suite, each.title), settings)


def _out_of_time(signum: int, frame: FrameType | None) -> Any:
    raise OutOfTimeError


def arguments(words: list[str] | None = None) -> tuple[common.Settings, float, tuple[Entry, ...]]:
    """Reads settings, minutes and suites from the command line.

    Raises:
        UserError: there is no GPU, and --rehearse is not set.
    """
    parser = argparse.ArgumentParser(description=common.title(str(__doc__)))
    common.add_arguments(parser)
    parser.add_argument("--rehearse", action="store_true", help="the same code, tiny, on the CPU")
    parser.add_argument("--minutes", type=float, default=9)
    names = [each.suite for each in LIST]
    parser.add_argument("--suite", action="append", choices=names, help="these alone; by default all, in their order")
    found = parser.parse_args(words)
    if found.rehearse:
        found.tiny, found.device, found.machine = True, "cpu", found.machine or "rehearsal"
    elif not torch.cuda.is_available():
        raise UserError("this machine has no GPU that torch can use; --rehearse runs the same code tiny on the CPU")
    else:
        found.device = "cuda"
    return common.settings(found), found.minutes, tuple(each for each in LIST if each.suite in (found.suite or names))


def main() -> None:
    """Runs the suites and prints for each target whether it is met."""
    try:
        settings, minutes, entries = arguments()
        paths = run_all(settings, minutes, entries)
    except UserError as error:
        print(f"gpu: {error}", file=sys.stderr)
        sys.exit(2)
    if settings.tiny:
        print("a rehearsal: its figures mean nothing")
    for path in paths:
        record = common.Record.model_validate_json(path.read_text(encoding="utf-8"))
        for note in record.notes:
            if note.startswith(("Cut off", "Failed")):
                print(f"{record.suite}: {note}")
        for target in () if settings.tiny else TARGETS:
            if ratio := found(target, record):
                print(f"{target.says}: {target.ratio} {ratio.value:.3g}, {target.kind} {target.bound:.3g}: "
                      f"{target.verdict(ratio.value)}")  # fmt: skip


if __name__ == "__main__":
    main()
