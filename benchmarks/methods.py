"""What a step of each method costs, on one network and batch: passes of networks, seconds, memory.

DeepLabV3+ with output stride 16; on a CPU ResNet-50, 321 x 321 px, 4 labeled and 4 unlabeled images, fp32; on a GPU
513 x 513 px, 16 and 16, bf16: python benchmarks/methods.py
Of some methods alone: python benchmarks/methods.py --method cct --method fixmatch --out FOLDER
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import common
import parts
import step
import torch
from torch import Tensor

from semiseg import methods
from semiseg.errors import UserError
from semiseg.models.build import Features, Network
from semiseg.recipe.engine import Precision
from semiseg.types import LoadedBatch

BOUND = 1.10  # of measured over needed time
AT = step.STEPS * 9 // 10  # the step that is measured: warm-ups and ramps are over
WHAT = (
    "student forwards", "student backwards", "teacher forwards", "other forwards", "decoder forwards",
    "decoder backwards",
)  # fmt: skip
COLUMNS = (*WHAT, "memory", "step", "needed")  # of the table of docs/performance.md


@dataclass(frozen=True)
class Passes:
    """Images that a step passes through networks.

    Attributes:
        encoded: through encoders without gradient.
        decoded: through decoders without gradient.
        trained: through encoders with gradient, forward and backward.
        refined: through decoders with gradient, forward and backward.
        teacher: those of `encoded` that passed a network without trained weights.
        others: through other parts of the method that have weights, e.g. a critic or a projection, and through the
            decoder of a network that does not learn if a gradient passes it, as for adversarial noise.
    """

    encoded: int
    decoded: int
    trained: int
    refined: int
    teacher: int
    others: int

    @property
    def figures(self) -> dict[str, int]:
        """Returns the numbers of WHAT. A pass with gradient is a forward and a backward."""
        student = self.encoded - self.teacher + self.trained
        forwards = self.decoded + self.refined
        values = (student, self.trained, self.teacher, self.others, forwards, self.refined)
        return dict(zip(WHAT, values, strict=True))


@dataclass(frozen=True)
class Costs:
    """Measured seconds of one image: of the whole network, and of its decoder and head alone.

    Attributes:
        forward: without gradient, in eval mode.
        both: forward and backward, in train mode.
        decoder_forward: of the decoder and the head, likewise.
        decoder_both: of the decoder and the head, likewise.
    """

    forward: float
    both: float
    decoder_forward: float
    decoder_both: float

    def needed(self, passes: Passes) -> float:
        """Returns the seconds that the passes through networks need, without those of `others`.

        Example:
            >>> passes = Passes(encoded=2, decoded=2, trained=3, refined=5, teacher=0, others=0)
            >>> Costs(forward=2.0, both=6.0, decoder_forward=0.5, decoder_both=1.0).needed(passes)
            24.0
        """
        return (
            passes.encoded * (self.forward - self.decoder_forward)
            + passes.decoded * self.decoder_forward
            + passes.trained * (self.both - self.decoder_both)
            + passes.refined * self.decoder_both
        )


@contextmanager
def counting(ours: step.Ours) -> Iterator[tuple[Callable[[], Passes], parts.Recorder]]:
    """Counts the passes of the steps taken inside.

    Gives a function that returns what was counted so far, and the calls of other parts.
    """
    counts: Counter[str] = Counter()
    teachers = {
        id(module)
        for module in ours.method.modules()
        if isinstance(module, Network) and not any(parameter.requires_grad for parameter in module.parameters())
    }

    def of_teacher(network: Network) -> bool:
        return id(network) in teachers

    def encode(original: Callable[..., Features]) -> Callable[..., Features]:
        def counted(self: Network, image: Tensor) -> Features:
            kind = "trained" if torch.is_grad_enabled() and not of_teacher(self) else "encoded"
            counts[kind] += len(image)
            counts["teacher"] += len(image) * of_teacher(self)
            return original(self, image)

        return counted

    def decode(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(self: Network, features: Features) -> Tensor:
            decoded = original(self, features)
            if of_teacher(self) and decoded.requires_grad:
                recorder.decode(self, features, decoded)
            else:
                counts["refined" if torch.is_grad_enabled() and not of_teacher(self) else "decoded"] += len(decoded)
            return decoded

        return counted

    with ExitStack() as stack:
        recorder = stack.enter_context(parts.recording(ours.method, ours.stepper.runtime))
        stack.enter_context(patch.object(Network, "encode", encode(Network.encode)))
        stack.enter_context(patch.object(Network, "decode", decode(Network.decode)))
        kinds = ("encoded", "decoded", "trained", "refined", "teacher")
        yield lambda: Passes(**{kind: counts[kind] for kind in kinds}, others=recorder.images), recorder


def batch_for(ours: step.Ours, loaded: LoadedBatch) -> LoadedBatch:
    """Gives a batch what the views of a method ask for: a second crop, pseudo-labels, or labeled images alone."""
    views = ours.method.views
    if not views.unlabeled:
        return replace(loaded, weak=loaded.weak[:0], valid=loaded.valid[:0], index=loaded.index[:0])
    if views.overlap is not None:
        align = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=loaded.weak.device).expand(len(loaded.weak), 2, 2)
        loaded = replace(loaded, second=loaded.weak, align=align)
    return replace(loaded, pseudo=loaded.label) if views.pseudo else loaded


def passes_of(ours: step.Ours, batch: int, side: int) -> dict[str, Callable[[], Any]]:
    """Makes calls of the network and of its decoder: without gradient on one image a slot, with gradient on two."""
    network, runtime = ours.method.student, ours.stepper.runtime
    image = torch.randn(2 * batch, 3, side, side, device=runtime.device).to(memory_format=torch.channels_last)
    with torch.no_grad(), runtime.autocast():
        features = network.train().encode(image)
    leaves = replace(features, maps=tuple(one.detach() for one in features.maps))
    half = leaves[:batch]

    def forward() -> None:
        network.eval()
        with torch.no_grad(), runtime.autocast():
            network(image[:batch])

    def decoder_forward() -> None:
        network.eval()
        with torch.no_grad(), runtime.autocast():
            network.classify(network.decode(half), half.size)

    def both() -> None:
        network.train()
        with runtime.autocast():
            logits = network(image)
        logits.backward(torch.ones_like(logits))

    def decoder_both() -> None:
        network.train()
        given = leaves.each(lambda one: one.detach().requires_grad_(one.is_floating_point()))
        with runtime.autocast():
            logits = network.classify(network.decode(given), given.size)
        logits.backward(torch.ones_like(logits))

    return {"forward": forward, "both": both, "decoder_forward": decoder_forward, "decoder_both": decoder_both}


def measure(run: common.Settings, results: common.Results, only: Collection[str] = ()) -> None:
    """Measures every method, or those of `only`, in turns with supervised training and with the passes they need."""
    side, batch, encoder = run.size((321, 4, "resnet50"), (513, 16, "resnet50"), (33, 2, "tu-test_efficientnet"))
    precision: Precision = "bf16" if run.device.type == "cuda" else "fp32"
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "classes": 21,
                         "precision": precision, "step": f"{AT} of {step.STEPS}"}  # fmt: skip
    loaded = step.loaded_batch(batch, side, 21, run.device)

    def build(name: str) -> tuple[step.Ours, Callable[[], Any]]:
        ours = step.Ours(run.device, method=name, encoder=encoder, precision=precision)
        ours.taken = AT
        given = batch_for(ours, loaded)
        return ours, lambda: ours.take(given)

    names = ["supervised", *(name for name in methods.names() if name != "supervised")]
    names = [name for name in names if not only or name in only]
    above = [name for name in names if _method(run, results, name, build, (batch, side)) > BOUND]
    results.note(
        "Forwards and backwards are images a step, counted in real steps: through the encoders of networks that learn "
        "(student) and of those that do not (teacher), through decoders, and through what has weights beside networks "
        "(others), or through decoders for adversarial noise (others, too). needed is the time of these passes, from "
        "the time of one image through the same network and through its decoder, without gradient, and forward and "
        "backward, and of each call of others alone, with the gradient passes that it has in the step, all measured in "
        "turns with the method. What a method does beside is not in it: strong views, losses, EMA, the optimizer, "
        "other networks."
    )
    results.note(f"Above {BOUND:.2f} times what is needed: {', '.join(above) or 'none'}.")
    results.note("Memory is the peak of two steps above what was in use before; on a CPU that of the process.")


def _method(
    run: common.Settings,
    results: common.Results,
    name: str,
    build: Callable[[str], tuple[step.Ours, Callable[[], Any]]],
    size: tuple[int, int],
) -> float:
    """Measures a method. Returns its measured over its needed time."""
    common.settle(run.device)
    before = common.resident_mb(run.device)
    ours, take = build(name)
    peak = common.peak_memory_mb(lambda: (take(), take()), run.device) - before
    passes, others = _counted(ours, take)
    baseline, take_baseline = build("supervised")
    batch, side = size
    candidates = {"step": take, "supervised": take_baseline, **passes_of(baseline, batch, side)}
    candidates |= {f"other {number}": call.again for number, (call, _) in enumerate(others)}
    seconds = common.interleaved(candidates, run.times(5), run.device, 1)
    for what, number in passes.figures.items():
        results.figure(f"{name}, {what}", "1", number)
    results.figure(f"{name}, step", "s", *seconds["step"])
    results.figure(f"{name}, beside supervised", "s", *seconds["supervised"])
    images = {"forward": batch, "both": 2 * batch, "decoder_forward": batch, "decoder_both": 2 * batch}
    costs = {key: common.summary([one / number for one in seconds[key]])[0] for key, number in images.items()}
    beside = sum(many * common.summary(seconds[f"other {n}"])[0] for n, (_, many) in enumerate(others))
    results.figure(f"{name}, needed by other parts", "s", beside)
    results.figure(f"{name}, needed", "s", Costs(**costs).needed(passes) + beside)
    results.figure(f"{name}, memory", "MB", peak)
    results.ratio(f"{name} / supervised", f"{name}, step", f"{name}, beside supervised")
    results.ratio(f"{name}, measured / needed", f"{name}, step", f"{name}, needed")
    return results.ratios[-1].value


def _counted(ours: step.Ours, take: Callable[[], Any]) -> tuple[Passes, list[tuple[parts.Call, int]]]:
    """Takes a step. Returns its passes, and its calls of other parts: one of each kind, with their number."""
    with counting(ours) as (counted, recorder):
        take()
        return counted(), recorder.kinds()


def arguments(words: list[str] | None = None) -> tuple[common.Settings, list[str]]:
    """Reads the settings and the names of the methods; none: all of them.

    Raises:
        UserError: there is no such method, or figures of some methods would replace those of all.
    """
    parser = argparse.ArgumentParser(description=common.title(str(__doc__)))
    common.add_arguments(parser)
    parser.add_argument("--method", action="append", default=[], help="to measure; by default all methods")
    found = parser.parse_args(words)
    for name in found.method:
        if name not in methods.names():
            raise UserError(f"--method {name}: there is no such method; choose from {', '.join(methods.names())}")
    if found.method and found.out is None:
        raise UserError("--method: the results of some methods would replace those of all; name a folder with --out")
    return common.settings(found), found.method


def main() -> None:
    """Runs the benchmark from the command line."""
    try:
        settings, only = arguments()
        common.run_suite("methods", str(__doc__), lambda run, results: measure(run, results, only), settings)
    except UserError as error:
        print(f"methods: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
