"""Only networks compute in low precision: losses and hardness are fp32. Steps whose gradients overflow are skipped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semiseg import data
from semiseg.data.read import read_image
from semiseg.engine import checkpoint
from semiseg.engine import train as engine
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.hardness import easiness
from semiseg.method import SemiMethod, predictor
from semiseg.methods import imas
from semiseg.models.predict import predict, whole
from semiseg.recipe.load import dump, validate
from semiseg.recipe.recipe import Recipe
from semiseg.rng import fold_in
from semiseg.runs import Run
from semiseg.scenes import write_scenes

Prepared = tuple[Recipe, data.Dataset, Run]


@pytest.fixture
def prepare(recipe, tmp_path: Path) -> Callable[..., Prepared]:
    """prepare(name, engine={...}) -> recipe, dataset and a run directory that was just started."""

    def prepare(name: str, **sections: dict[str, Any]) -> Prepared:
        validated = validate(recipe("imas", **sections), "recipe")
        dataset, run = data.load(validated.data), Run(tmp_path / name)
        run.start(dump(validated), {}, [sample.name for sample in dataset.unlabeled])
        return validated, dataset, run

    return prepare


@pytest.fixture(scope="module")
def opinionated(recipe, tmp_path_factory) -> tuple[SemiMethod, Tensor]:
    """A method whose networks see all classes, differ here and there and are seldom sure, and 8 scenes of 128 px."""
    root = tmp_path_factory.mktemp("precision")
    write_scenes(root, num_train=13, num_val=1, size=128, seed=3, labeled=5)
    validated = validate(recipe("imas", data={"root": str(root)}), "recipe")
    dataset = data.load(validated.data)
    method, generator = build_method(validated, dataset.classes), fold_in(0, "opinionated")
    for name, parameter in method.named_parameters():
        if name.startswith("teacher") and parameter.dim() > 1:
            parameter.data += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        if "segmentation_head" in name and name.endswith("weight"):
            parameter.data *= 30
    images = torch.stack([read_image(sample.image) for sample in dataset.unlabeled])
    return method, predictor(method)[0].normalization(images)


def test_hardness_in_low_precision(opinionated):
    """Networks that round to bf16 move a few pixels across a threshold or a border, and nothing else.

    Where only a few dozen pixels are no background (scenes of 64 px), one of them can be worth more than that.
    """
    method, images = opinionated
    opinions = {}
    for precision in ("fp32", "bf16"):
        with torch.no_grad(), Runtime("cpu", precision).autocast():
            opinions[precision] = [predict(network, images) for network in (method.student, method.teacher)]
    for confidence in (0.5, 0.7, 0.95):
        full, low = (easiness(*opinions[precision], confidence, None, 0) for precision in ("fp32", "bf16"))
        assert full.dtype == low.dtype == torch.float32
        assert full.std() > 0.1  # there is something to measure
        assert 0 < (full - low).abs().max() < 0.01
    moved = [one.label != other.label for one, other in zip(*opinions.values(), strict=True)]
    assert 0 < torch.stack(moved).float().mean() < 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_measured_and_decided_is_fp32(opinionated, prepare, monkeypatch, precision):
    seen: dict[str, Tensor] = {}
    names = ("easiness", "confident_cross_entropy", "confident_ratio")
    for name in names:
        function = getattr(imas, name)

        def spy(*args: Any, name: str = name, function: Any = function) -> Tensor:
            seen[f"{name} in"] = args[0] if isinstance(args[0], Tensor) else args[0].confidence
            seen[name] = function(*args)
            return seen[name]

        monkeypatch.setattr(imas, name, spy)
    observe, forward = imas.Method.observe, imas.Method.forward

    def observed(self: Any, *args: Any) -> Any:
        found = observe(self, *args)
        seen.update({"confidence": found.confidence, "easy": found.easy})
        return found

    def stepped(self: Any, *args: Any) -> Any:
        losses = forward(self, *args)
        seen.update({"total": losses.total, "hardness": losses.hardness, **losses.scalars})
        return losses

    monkeypatch.setattr(imas.Method, "observe", observed)
    monkeypatch.setattr(imas.Method, "forward", stepped)
    engine.train(*prepare("run", engine={"steps": 1, "precision": precision}))
    logits = seen.pop("confident_cross_entropy in")
    assert logits.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]  # the network's own
    assert len(seen) >= 12
    assert {name for name, value in seen.items() if value.dtype != torch.float32} == set()

    method, images = opinionated
    with Runtime("cpu", precision).autocast():
        assert predict(method.student, images[:1]).confidence.dtype == torch.float32
        assert whole(method.student, images[:1]).dtype == torch.float32


def half(scale: float, factor: float = 2.0) -> Runtime:
    """A CPU that computes in fp16 with a gradient scaler, as a GPU does; Accelerate makes none itself.

    The scale falls by `factor` when gradients overflow, and grows by it after three steps in which they do not.
    """
    runtime = Runtime("cpu")
    runtime.precision = "fp16"
    runtime.accelerator.state._mixed_precision = "fp16"
    runtime.accelerator.native_amp = True
    runtime.accelerator.scaler = torch.amp.GradScaler("cpu", scale, factor, 1 / factor, growth_interval=3)
    return runtime


@pytest.mark.parametrize(("scale", "after"), [(2.0**60, 2.0**59), (2.0**8, 2.0**8)])
def test_an_overflow_leaves_a_step_out_and_lowers_the_scale(prepare, scale, after):
    recipe, dataset, run = prepare("run", engine={"steps": 1, "eval_every": 1, "save_every": 1})
    start = build_method(recipe, dataset.classes).state_dict()
    runtime = half(scale)
    engine.train(recipe, dataset, run, runtime=runtime)
    (record,) = run.metrics("train")
    assert (record["gradient_norm"] is None) == (after < scale)  # JSON has no number for it
    saved = checkpoint.newest(run.checkpoints)
    assert saved.scaler == runtime.scaler_state()
    assert saved.scaler["scale"] == after
    weights = saved.model_state()
    trained = [key for key in start if key.startswith("student") and "running" not in key and "tracked" not in key]
    left_out = after < scale
    assert all(torch.equal(weights[key], start[key]) for key in trained) == left_out
    assert any(value.any() for value in saved.optimizer_state().values()) != left_out  # no momentum yet


def test_half_precision_goes_on_where_it_was(prepare, interrupted):
    """The scale falls and grows before and after an interruption, as in an uninterrupted run.

    Gradients overflow at one of the two scales and not at the other, by far, however a CPU rounds.
    """
    plan = {"steps": 8, "log_every": 1, "eval_every": 8, "save_every": 1, "keep_checkpoints": 8}
    whole, parts = prepare("whole", engine=plan), prepare("parts", engine=plan)
    engine.train(*whole, runtime=half(2.0**60, 2.0**52))
    scalers = [checkpoint.read(path).scaler for path in sorted(whole[2].checkpoints.glob("step-*"))]
    assert [scaler["scale"] for scaler in scalers] == [2.0**8, 2.0**8, 2.0**8, 2.0**60] * 2
    assert scalers[5]["_growth_tracker"] > 0  # the interruption comes between two changes
    with interrupted("semiseg.engine.step.make_batch", 7):
        engine.train(*parts, runtime=half(2.0**60, 2.0**52))
    assert checkpoint.newest(parts[2].checkpoints).step == 6
    engine.train(*parts, runtime=half(1.0))  # the checkpoint's scale and factor count
    for path in whole[2].checkpoints.glob("step-*"):
        one, other = checkpoint.read(path), checkpoint.read(parts[2].checkpoints / path.name)
        assert one.scaler == other.scaler
        for left, right in ((one.model_state(), other.model_state()), (one.optimizer_state(), other.optimizer_state())):
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)
