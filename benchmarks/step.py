"""A training step of iMAS: its phases, beside a supervised step and other code, and how it grows.

ResNet-50, DeepLabV3+ with output stride 16; on a CPU 321 x 321 px, 4 labeled and 4 unlabeled images, fp32; on a GPU
513 x 513 px, 16 and 16, in bf16 and fp32:
python benchmarks/step.py [--peer imas=PATH] [--peer unimatch=PATH] [--data VOC]
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import common
import loader
import peer_imas
import peer_unimatch
import torch
from photographs import photographs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from semiseg.augment.views import Views
from semiseg.data.loader import train_loader
from semiseg.engine import step as engine_step
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.engine.step import Stepper
from semiseg.method import SemiMethod, predictor
from semiseg.methods import imas
from semiseg.methods import load as method_module
from semiseg.models.build import Network, Undivided
from semiseg.recipe.engine import Precision
from semiseg.recipe.load import validate
from semiseg.types import ClassTable, LoadedBatch, Normalization

NETWORK_PHASES = ("hardness forwards", "student forward", "backward")
NEEDED = {"iMAS": 11, "supervised": 3}  # cost of a step in forward passes of its labeled images; see compare()
STEPS = 10**6  # length of the run that these steps would belong to: the learning rate hardly falls


class Ours:
    """Takes steps of one of our methods, on a batch that is on the device already.

    Args:
        device: where to compute.
        method: name of the method.
        encoder: encoder of the network.
        num_classes: number of classes.
        precision: precision of the network.
        network: builds another network, e.g. a peer's; None: ours.
        compiled: whether the networks are compiled.
        lr: learning rate of the encoder.
        batch_size: number of labeled images in a step; a smaller batch is taken as it is.
        micro_batch_size: number of labeled images in one forward pass.
        method_settings: settings of the method.
    """

    def __init__(
        self,
        device: torch.device,
        method: str = "imas",
        encoder: str = "resnet50",
        num_classes: int = 21,
        precision: Precision = "fp32",
        network: Callable[[], nn.Module] | None = None,
        compiled: bool = False,
        lr: float = 0.001,
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        **method_settings: Any,
    ) -> None:
        recipe = validate(
            {
                "data": {"layout": "voc", "root": "."},
                "model": {"encoder": encoder, "weights": None, "output_stride": 16},
                "method": {"name": method, **method_settings},
                "optim": {"lr": lr},
                "engine": {
                    "steps": STEPS,
                    "device": device.type,
                    "precision": precision,
                    "compile": compiled,
                    "batch_size": batch_size,
                    "micro_batch_size": micro_batch_size,
                },
            },
            "benchmark",
        )
        classes = ClassTable.of([str(number) for number in range(num_classes)], background=0)
        self.method: SemiMethod
        if network is None:
            self.method = build_method(recipe, classes)
        else:
            self.method = method_module(method)(recipe.method, lambda: wrapped(network()), classes)
        self.method = self.method.to(device).to(memory_format=torch.channels_last)
        self.stepper = Stepper(recipe, self.method, Runtime(device.type, precision))
        self.stepper.start()
        self.taken = 0

    def take(self, loaded: LoadedBatch) -> Any:
        """Takes the next step."""
        self.taken += 1
        return self.stepper.take(self.taken - 1, loaded)


def wrapped(network: nn.Module) -> Network:
    """Wraps a peer's network as one of ours. One of ours stays as it is."""
    return network if isinstance(network, Network) else Network(Undivided(_Logits(network)), Normalization(), 1)


class _Logits(nn.Module):
    """A peer's network that returns only its first output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found = self.network(image)
        return found[0] if isinstance(found, tuple) else found


def loaded_batch(batch: int, side: int, num_classes: int, device: torch.device, unlabeled: bool = True) -> LoadedBatch:
    """Makes a batch of colored blocks with labels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (2, batch, 3, 9, 9), generator=generator).float()
    first, second = (torch.nn.functional.interpolate(each, (side, side)).to(torch.uint8) for each in coarse)
    blocks = torch.randint(num_classes, (batch, 1, 9, 9), generator=generator).float()
    label = torch.nn.functional.interpolate(blocks, (side, side))[:, 0].to(torch.uint8)
    second = second if unlabeled else second[:0]
    index = torch.arange(batch)
    valid = torch.ones(len(second), side, side, dtype=torch.bool)
    return LoadedBatch(first, label, second, valid, index, index[: len(second)]).to(device)


class Phases:
    """Measures the seconds of each phase of a step. The time of an inner phase does not count for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[tuple[str, float, float]] = []  # name, begin, seconds of inner phases

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of this context to phase `name`. A phase inside itself is not counted again."""
        if self.open and self.open[-1][0] == name:
            yield
            return
        common.synchronize(self.device)
        self.open.append((name, time.perf_counter(), 0.0))
        yield
        common.synchronize(self.device)
        name, begin, inside = self.open.pop()
        took = time.perf_counter() - begin
        self.seconds[name] += took - inside
        if self.open:
            outer, started, others = self.open.pop()
            self.open.append((outer, started, others + took))

    def timed(self, name: str, function: Callable[..., Any], always: bool = True) -> Callable[..., Any]:
        """Wraps `function` as a phase. If not `always`, calls inside the hardness forwards do not count."""

        def run(*positional: Any, **named: Any) -> Any:
            if not always and self.open and self.open[-1][0] == "hardness forwards":
                return function(*positional, **named)
            with self.phase(name):
                return function(*positional, **named)

        return run

    @contextmanager
    def watching(self, ours: Ours) -> Iterator[None]:
        """Times the phases of iMAS's steps. The phase mixing is the rest of `forward`: blend, CutMix, joining views."""
        stepper, method = ours.stepper, ours.method
        places = [
            (engine_step, "make_batch", "views", True),
            (imas, "predict", "hardness forwards", True),
            (imas, "easiness", "hardness", True),
            (imas, "confident_cross_entropy", "losses", True),
            (method, "forward", "mixing", True),
            (method.student, "forward", "student forward", False),
            (stepper.runtime, "backward", "backward", True),
            (stepper.optimizers, "step", "optimizer", True),
            (method, "after_step", "EMA", True),
        ]
        with ExitStack() as stack:
            for owner, name, phase, always in places:
                stack.enter_context(patch.object(owner, name, self.timed(phase, getattr(owner, name), always)))
            labeled = type(method.config.labeled_loss)
            stack.enter_context(patch.object(labeled, "__call__", self.timed("losses", labeled.__call__)))
            yield


def profile(run: common.Settings, results: common.Results, ours: Ours, sizes: tuple[int, int]) -> None:
    """Times every phase of real steps, from reading files on. It waits for the device after each phase."""
    side, batch = sizes
    rows: dict[str, list[float]] = defaultdict(list)
    warm_up, repeats = (1 if run.tiny else 2), run.times(7)
    workers = run.size(2, 8, 0)
    with photographs(run.data, max(16, 4 * batch + 4)) as photos:
        images, settings = loader.dataset(photos, side, workers)
        batches = iter(
            train_loader(images, settings, Views(), batch_size=batch, seed=0, start=0, num_steps=warm_up + repeats)
        )
        for number in range(warm_up + repeats):
            phases = Phases(run.device)
            with phases.watching(ours), phases.phase("everything else"):
                with phases.phase("input wait"):
                    loaded = next(batches).to(run.device)
                ours.take(loaded)
            if number >= warm_up:
                for name, seconds in phases.seconds.items():
                    rows[name].append(seconds)
        results.settings |= {"phases": f"{photos.describe()}, {workers} loader workers"}
    order = ("input wait", "views", "hardness forwards", "hardness", "mixing", "student forward", "losses", "backward",
             "optimizer", "EMA", "everything else")  # fmt: skip
    results.profile({name: rows[name] for name in order})
    steps = [sum(seconds) for seconds in zip(*rows.values(), strict=True)]
    beyond = [
        sum(seconds for name, seconds in zip(rows, values, strict=True) if name not in NETWORK_PHASES)
        for values in zip(*rows.values(), strict=True)
    ]
    results.figure("step, sum of its phases", "s", *steps)
    results.figure("beyond forwards and backward", "s", *beyond)
    results.figure("input wait", "s", *rows["input wait"])
    results.ratio("share beyond forwards and backward", "beyond forwards and backward", "step, sum of its phases")
    results.ratio("share of input wait", "input wait", "step, sum of its phases")


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], Tensor]:
    """Makes a call of one matrix multiplication, 2 * side ** 3 operations."""
    first, second = torch.randn(2, side, side, device=device).to(dtype).unbind()
    return lambda: first @ second


def measure(run: common.Settings, results: common.Results) -> None:
    """Measures everything that the module's docstring names."""
    side, batch, encoder = run.size((321, 4, "resnet50"), (513, 16, "resnet50"), (33, 2, "tu-test_efficientnet"))
    precision: Precision = "bf16" if run.device.type == "cuda" else "fp32"
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "classes": 21,
                         "precision": precision}  # fmt: skip
    candidates = everyone(run, results, side, batch, encoder, precision)
    ours = Ours(run.device, encoder=encoder, precision=precision)
    profile(run, results, ours, (side, batch))
    weigh(results, "semiseg", predictor(ours.method)[0], side, run.device)
    forward = results.figures["semiseg, network, forward of an image"].median
    operations = results.figure("semiseg, operations a step", "FLOP", forward * batch * NEEDED["iMAS"])
    del ours

    for name, build in candidates.items():
        common.settle(run.device)
        before = common.resident_mb(run.device)
        step = build()
        peak = common.peak_memory_mb(lambda step=step: (step(), step()), run.device)
        results.figure(f"{name}, memory", "MB", peak - before)
        if run.device.type == "cuda":  # one at a time: all together may not fit into memory
            results.time({name: step}, usual=9, warm_up=3)
        del step
    if run.device.type == "cpu":
        results.time({name: build() for name, build in candidates.items()}, usual=5, warm_up=1)
    common.settle(run.device)
    compare(run, results)

    dtype, size = (torch.bfloat16 if precision == "bf16" else torch.float32), run.size(2048, 8192, 64)
    multiply = matmul_rate(run.device, dtype, size)
    seconds = common.interleaved({"": multiply}, run.times(9), run.device)[""]
    results.figure(f"matrix multiplication, {precision}", "FLOP/s", *(2 * size**3 / each for each in seconds))
    step_s = results.figures["semiseg"].median
    results.figure("semiseg, images a second", "images/s", 2 * batch / step_s)
    results.figure("semiseg, operations a second", "FLOP/s", operations / step_s)
    results.ratio(
        "share of the matrix multiplication rate", "semiseg, operations a second", f"matrix multiplication, {precision}"
    )
    if not run.brief:
        grow(run, results, encoder, precision)


Build = Callable[[], Callable[[], Any]]


def everyone(
    run: common.Settings, results: common.Results, side: int, batch: int, encoder: str, precision: Precision
) -> dict[str, Build]:
    """Returns a function for each candidate that builds it: it is built once for memory and once for time."""
    device = run.device
    loaded = loaded_batch(batch, side, 21, device)
    labeled_only = loaded_batch(batch, side, 21, device, unlabeled=False)

    def of(loaded: LoadedBatch, **options: Any) -> Build:
        def build() -> Callable[[], Any]:
            ours = Ours(device, encoder=encoder, **options)
            return lambda: ours.take(loaded)

        return build

    candidates = {"semiseg": of(loaded, precision=precision),
                  "semiseg, supervised": of(labeled_only, method="supervised", precision=precision)}  # fmt: skip
    candidates["semiseg, between two looks of the student"] = of(loaded, precision=precision, hardness_every=10**6)
    if precision != "fp32":
        candidates["semiseg, fp32"] = of(loaded)
    if device.type == "cuda" and not run.brief:
        candidates["semiseg, compiled"] = of(loaded, precision=precision, compiled=True)
    normalize = Normalization()
    image, weak = normalize(loaded.image), normalize(loaded.weak)
    strong, label = weak.flip(-1).contiguous(), loaded.label.long()
    if path := run.peers.get("imas"):
        peer = peer_imas.Imas(path, device)
        results.peers["imas"] = peer.commit
        weigh(results, "imas", peer.network(21), side, device)
        results.settings["imas, share of steps with CutMix"] = round(peer.firing_rate() or 0.5, 3)
        candidates["semiseg, with the network of imas"] = of(
            loaded, precision=precision, network=lambda: peer.network(21)
        )

        def build(fires: bool) -> Build:
            def built() -> Callable[[], Any]:
                step = peer_imas.Step(peer, 21)
                return lambda: step.take(image, label, weak, strong, fires)

            return built

        candidates |= {"imas, CutMix fires": build(True), "imas, CutMix does not fire": build(False)}
    if path := run.peers.get("unimatch"):
        other = peer_unimatch.UniMatch(path, device)
        results.peers["unimatch"] = other.commit
        weigh(results, "unimatch", other.network(21), side, device)

        def unimatch() -> Callable[[], Any]:
            step = peer_unimatch.Step(other, 21)
            return lambda: step.take(image, label, weak, strong)

        candidates["unimatch"] = unimatch
    return candidates


def weigh(results: common.Results, name: str, network: nn.Module, side: int, device: torch.device) -> None:
    """Adds the operations and parameters of a network."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side, device=device))
    results.figure(f"{name}, network, forward of an image", "FLOP", float(counter.get_total_flops()))
    results.figure(f"{name}, network, parameters", "million", sum(each.numel() for each in network.parameters()) / 1e6)


def compare(run: common.Settings, results: common.Results) -> None:
    """Adds the ratios."""
    seconds = {name: figure.median for name, figure in results.figures.items()}
    results.figure("iMAS / supervised, needed", "1", NEEDED["iMAS"] / NEEDED["supervised"])
    results.figure("iMAS / supervised, measured", "1", seconds["semiseg"] / seconds["semiseg, supervised"])
    results.ratio(
        "iMAS / supervised, measured / needed",
        "iMAS / supervised, measured",
        "iMAS / supervised, needed",
    )
    results.note(
        "Needed: a forward costs 1 an image, a backward 2. Supervised: b labeled images forward and backward, 3 b. "
        "iMAS: b unlabeled images through student and teacher without gradient, 2 b, then labeled images and two "
        "views of the unlabeled ones forward and backward, 9 b. 11 b over 3 b is 3.67. Operations a step are 11 b "
        "times those of a forward; a rate above that of a matrix multiplication is that of a faster library."
    )
    for other in ("between two looks of the student", "compiled"):
        if f"semiseg, {other}" in seconds:
            results.ratio(f"semiseg, {other} / semiseg", f"semiseg, {other}", "semiseg")
    if "imas" in results.peers:
        share = float(results.settings["imas, share of steps with CutMix"])
        for suffix, unit in (("", "s"), (", memory", "MB")):
            fires, not_ = (seconds[f"imas, CutMix {word}{suffix}"] for word in ("fires", "does not fire"))
            mean = max(fires, not_) if suffix else share * fires + (1 - share) * not_
            results.figure(f"imas{suffix}", unit, mean)
            results.ratio(f"semiseg / imas{suffix}", f"semiseg{suffix}", f"imas{suffix}")
            results.ratio(
                f"semiseg / imas, its network in both{suffix}",
                f"semiseg, with the network of imas{suffix}", f"imas{suffix}",
            )  # fmt: skip
        for what in ("forward of an image", "parameters"):
            results.ratio(f"semiseg / imas, network, {what}", f"semiseg, network, {what}", f"imas, network, {what}")
        results.ratio("semiseg / imas, CutMix does not fire", "semiseg", "imas, CutMix does not fire")
        results.note(
            "imas is the mean over steps with and without CutMix, which fires as often as the mean easiness in its own "
            "logs says; its memory is the larger of the two. With CutMix its student sees four batches, else three. "
            "Semiseg's step has three always, and makes its strong views inside the step; theirs lie ready. Both have "
            "DeepLabV3+ on ResNet-50 with output stride 16, but that of segmentation_models_pytorch has separable "
            "convolutions in its head and one convolution as a stem: the ratio with the network of imas in both leaves "
            "that difference out."
        )
    if "unimatch" in results.peers:
        results.ratio("semiseg / unimatch", "semiseg", "unimatch")
        results.note("UniMatch is another method: no teacher, two strong views, feature dropout; a second reference.")
    results.note("Memory is the peak above what was in use before networks were built; on a CPU that of the process.")


def grow(run: common.Settings, results: common.Results, encoder: str, precision: Precision) -> None:
    """Measures how a step grows with pixels, batch and classes, each with small values of the others."""
    sides = run.size((129, 193, 257), (257, 385, 513), (33, 49))
    batches = run.size((2, 4, 8), (4, 8, 16), (2, 3))
    tables = run.size((2, 21, 150), (2, 21, 150), (2, 5))
    few, small = batches[0], sides[0]

    def at(batch: int, side: int, classes: int) -> Callable[[], Any]:
        ours = Ours(run.device, encoder=encoder, num_classes=classes, precision=precision)
        loaded = loaded_batch(batch, side, classes, run.device)
        return lambda: ours.take(loaded)

    results.grow("step", "px an image", {side * side: at(few, side, 21) for side in sides}, 3)
    results.grow("step", "labeled images a batch", {batch: at(batch, small, 21) for batch in batches}, 3)
    results.grow("step", "classes", {classes: at(few, small, classes) for classes in tables}, 3)


if __name__ == "__main__":
    common.main("step", __doc__, measure)
