"""Everything that needs a GPU, correctness first, in at most 25 minutes.

python benchmarks/gpu.py [--peer imas=PATH] [--peer unimatch=PATH] [--data VOC]; with --rehearse the same code runs tiny
on the CPU, with --out for its meaningless figures.
"""

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import checkpoint
import common
import evaluation
import hardness
import loader
import step
import torch
import views
from targets import TARGETS, found

from semiseg.errors import UserError
from semiseg.types import LoadedBatch

SUITES = (("step", step), ("hardness", hardness), ("views", views), ("evaluation", evaluation), ("loader", loader),
          ("checkpoint", checkpoint))  # fmt: skip
STEPS, ALLOWED = 10, 1e-3
CORRECTNESS = "Losses of the same ten steps on a GPU and on a CPU, fp32 without TF32"


class OutOfTimeError(Exception):
    """The minutes are over."""


def correctness(run: common.Settings, results: common.Results) -> None:
    """Takes the same steps on both devices, sure enough of itself that unlabeled images count."""
    side, batch, encoder = run.size((129, 4, "resnet18"), (129, 4, "resnet18"), (33, 2, "tu-test_efficientnet"))
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "steps": STEPS}
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = False
    try:
        rows = [losses(torch.device("cpu"), encoder, batch, side), losses(run.device, encoder, batch, side)]
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before
    differences = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(*rows, strict=True)]
    results.figure("largest relative difference of a loss", "1", max(differences))
    results.figure("allowed", "1", ALLOWED)
    results.ratio("largest difference / allowed", "largest relative difference of a loss", "allowed")


def losses(device: torch.device, encoder: str, batch: int, side: int) -> list[float]:
    """Of the steps; small ones, because training enlarges any rounding.

    Weights that differ by 1e-7 give losses that differ by 2e-4 after ten of them, and by 5e-3 at ten times the rate. A
    gradient twice as large would make 5e-3.
    """
    ours = step.Ours(device, encoder=encoder, threshold=0.2, lr=1e-4)
    loaded = step.loaded_batch(batch, side, 21, device)
    return [float(ours.take(turned(loaded, number)).total) for number in range(STEPS)]


def turned(loaded: LoadedBatch, number: int) -> LoadedBatch:
    """Another batch for each step, the same on every device."""
    return replace(loaded, image=loaded.image.roll(number, -1), label=loaded.label.roll(number, -1),
                   weak=loaded.weak.roll(number, -2))  # fmt: skip


def run_all(settings: common.Settings, minutes: float) -> list[Path]:
    """Every suite, in order of importance; what time or memory does not allow for is left out, and noted."""
    begin = time.monotonic()
    results = common.Results(settings)
    correctness(settings, results)
    paths = [common.write(results.record("correctness", CORRECTNESS), settings)]
    if results.ratios[0].value > 1:
        raise UserError("losses on GPU and CPU differ by more than is allowed: speed means nothing yet")
    signal.signal(signal.SIGALRM, _out_of_time)
    for suite, module in SUITES:
        left = minutes * 60 - (time.monotonic() - begin)
        if left < 1:
            print(f"gpu: {suite} was left out: {minutes:g} minutes are over", file=sys.stderr)
            continue
        results = common.Results(settings)
        title = common.title(str(module.__doc__))
        print(f"== {suite}: {title} ({left / 60:.1f} minutes left)", flush=True)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            module.measure(settings, results)
        except OutOfTimeError:
            results.note(f"Cut off: {minutes:g} minutes were over; what is missing was not measured.")
        except torch.OutOfMemoryError as error:
            results.note(f"Cut off, out of memory: {str(error).splitlines()[0]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        common.settle(settings.device)
        paths.append(common.write(results.record(suite, title), settings))
    return paths


def _out_of_time(signum: int, frame: FrameType | None) -> Any:
    raise OutOfTimeError


def arguments(words: list[str] | None = None) -> tuple[common.Settings, float]:
    """Settings and minutes.

    Raises:
        UserError: there is no GPU, and this is no rehearsal.
    """
    parser = argparse.ArgumentParser(description=common.title(str(__doc__)))
    common.add_arguments(parser)
    parser.add_argument("--rehearse", action="store_true", help="the same code, tiny, on the CPU")
    parser.add_argument("--minutes", type=float, default=25)
    found = parser.parse_args(words)
    if found.rehearse:
        found.tiny, found.device, found.machine = True, "cpu", found.machine or "rehearsal"
    elif not torch.cuda.is_available():
        raise UserError("this machine has no GPU that torch can use; --rehearse runs the same code tiny on the CPU")
    else:
        found.device = "cuda"
    return common.settings(found), found.minutes


def main() -> None:
    """Runs everything and says which targets are met."""
    try:
        settings, minutes = arguments()
        paths = run_all(settings, minutes)
    except UserError as error:
        print(f"gpu: {error}", file=sys.stderr)
        sys.exit(2)
    if settings.tiny:
        print("a rehearsal: everything ran, and its figures mean nothing")
        return
    for path in paths:
        record = common.Record.model_validate_json(path.read_text(encoding="utf-8"))
        for target in TARGETS:
            if ratio := found(target, record):
                print(f"{target.says}: {target.ratio} {ratio.value:.3g}, {target.kind} {target.bound:.3g}: "
                      f"{target.verdict(ratio.value)}")  # fmt: skip


if __name__ == "__main__":
    main()
