"""Compiled networks train as others do, write the same files, and are compiled once."""

import inspect
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from semiseg import api, methods
from semiseg.engine import checkpoint, compiled
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.engine.step import Stepper
from semiseg.errors import UserError
from semiseg.method import predictor
from semiseg.models import build as building
from semiseg.models.build import Features, Network
from semiseg.models.predict import sliding, whole
from semiseg.recipe.load import validate
from semiseg.rng import fold_in, seeded
from semiseg.types import ClassTable, LoadedBatch, Normalization

CLOSE = 1e-5
CLASSES = ClassTable.of(("background", "red", "green"), background=0)
DEEPLAB = {"architecture": "deeplabv3plus", "options": {"decoder_channels": 16}}  # has dropout
TRACED = {"dynamic": False, "backend": "eager"}  # graphs that are made and not compiled further
Make = Callable[..., Stepper]


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of networks are not checked: checks end graphs."""
    for kind in (Network, Features, building._OneMap, building._Last):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if name in vars(kind):
                monkeypatch.setattr(kind, name, inspect.unwrap(function))


@pytest.fixture(autouse=True)
def compiler(monkeypatch) -> None:
    """The graphs of the compiler without its C++, and networks whose shapes are not checked: checks end graphs."""
    monkeypatch.setattr(compiled, "_HOW", {"dynamic": False, "backend": "aot_eager"})
    unchecked(monkeypatch)
    torch.compiler.reset()
    counters.clear()


def small(num_classes: int = 3) -> Network:
    """A network with batch norm and dropout."""
    with seeded(0, "small"):
        encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        head = nn.Conv2d(8, num_classes, 1)
        parts = {"encoder": building._OneMap(encoder), "decoder": building._Last(), "segmentation_head": head}
        return Network(nn.ModuleDict(parts), Normalization(), 1)


@pytest.fixture
def make(recipe) -> Make:
    """make("imas", compile=True) -> what takes steps of that method with small networks, or with those of `model`."""

    def make(name: str, compile: bool, model: dict[str, Any] | None = None, **engine: Any) -> Stepper:
        settings = {"steps": 10, "batch_size": 4, "compile": compile} | engine
        validated = validate(recipe(name, engine=settings, model=model or {}), "recipe")

        def network(outputs: int | None = None, channels: int = 3, _: building.Config | None = None) -> Network:
            with seeded(0, "network"):
                return building.build(validated.model, len(CLASSES)) if model is not None else small()

        with seeded(0, "method"):
            method = methods.load(name)(validated.method, network, CLASSES)
        stepper = Stepper(validated, method, Runtime("cpu"))
        stepper.start()
        return stepper

    return make


def loaded(step: int) -> LoadedBatch:
    image = torch.randint(256, (8, 3, 33, 33), generator=fold_in(0, step)).to(torch.uint8)
    label = (image[:4].argmax(1)).to(torch.uint8)
    valid = torch.ones(4, 33, 33, dtype=torch.bool)
    pseudo = image[4:].argmax(1).to(torch.uint8)
    return LoadedBatch(image[:4], label, image[4:], valid, torch.arange(4), torch.arange(4), pseudo=pseudo)


def assert_same_steps(one: Stepper, other: Stepper, steps: int = 4) -> None:
    for step in range(steps):
        losses, its = one.take(step, loaded(step)), other.take(step, loaded(step))
        assert losses.total.item() == pytest.approx(its.total.item(), abs=CLOSE)
        for name, scalar in losses.scalars.items():
            assert scalar.item() == pytest.approx(its.scalars[name].item(), abs=CLOSE), name
    state, its_state = one.method.state_dict(), other.method.state_dict()
    assert state.keys() == its_state.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, its_state[key], rtol=1e-4, atol=CLOSE, msg=key)


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.load(name).compiles])
def test_the_same_steps_with_the_same_dropout(make, name):
    assert_same_steps(make(name, True), make(name, False))
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("name", [name for name in methods.names() if not methods.load(name).compiles])
def test_methods_that_call_parts_of_networks_are_not_compiled(recipe, name):
    validated = validate(recipe(name, engine={"compile": True}), "recipe")
    with pytest.raises(UserError, match=f"engine.compile: method {name} calls the parts"):
        build_method(validated, CLASSES)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("supervised", {"cpp.vec_isa_ok": False}),  # one network, and no programs that try the CPU's vectors first
        pytest.param("imas", {}, marks=pytest.mark.soak),
    ],
)
def test_the_same_steps_in_cpp(make, monkeypatch, name, options):
    monkeypatch.undo()
    unchecked(monkeypatch)
    with torch._inductor.config.patch(options):
        assert_same_steps(make(name, True), make(name, False), steps=3)
    assert counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"] > 0


@pytest.mark.parametrize(("name", "graphs"), [("imas", 3), ("supervised", 1)])
def test_each_network_is_whole_and_compiled_once_for_each_mode(make, monkeypatch, name, graphs):
    """Of iMAS the teacher, and the student in either mode."""
    monkeypatch.setattr(compiled, "_HOW", TRACED)
    stepper = make(name, True, DEEPLAB)
    for step in range(2):
        stepper.take(step, loaded(step))
    assert counters["graph_break"] == {}
    assert counters["stats"]["unique_graphs"] == graphs
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(2, 4):
            stepper.take(step, loaded(step))


def test_micro_batches_share_the_graphs(make):
    stepper = make("imas", True, micro_batch_size=2)
    stepper.take(0, loaded(0))
    assert counters["stats"]["unique_graphs"] == 3


def test_evaluation_goes_around_the_graphs(make):
    """Images have many sizes, and each would be compiled for."""
    stepper = make("imas", True)
    stepper.take(0, loaded(0))
    compiled_before = dict(counters["stats"]), dict(counters["frames"])
    network = predictor(stepper.method)[0]
    for side in (16, 20, 33, 40):
        image = torch.rand(1, 3, side, 24, generator=fold_in(0, side))
        whole(network, image)
        sliding(network, image, (16, 16), (8, 8))
    assert (dict(counters["stats"]), dict(counters["frames"])) == compiled_before


def test_runs_in_turn_do_not_fill_the_cache(make, monkeypatch):
    """Torch stops compiling after eight graphs. All networks of a process share this limit."""
    monkeypatch.setattr(compiled, "_HOW", TRACED)
    for run in range(1, 4):
        make("imas", True).take(0, loaded(0))
        assert counters["stats"]["unique_graphs"] == 3 * run


def test_batches_too_small_for_batch_norm(make, monkeypatch):
    monkeypatch.setattr(compiled, "_HOW", TRACED)
    with pytest.raises(UserError, match=r"engine.micro_batch_size: batch norm cannot learn from 1 labeled image "):
        make("supervised", True, DEEPLAB, micro_batch_size=1).take(0, loaded(0))


def test_a_machine_that_cannot_compile(make, monkeypatch):
    monkeypatch.setattr(compiled, "_HOW", {"dynamic": False})
    nothing = {"cpp.cxx": (None, "/nowhere/g++"), "fx_graph_cache": False}
    says = r"engine.compile: a network cannot be compiled here \(No working C\+\+ compiler .*; .*use compile: false$"
    with torch._inductor.config.patch(nothing), pytest.raises(UserError, match=says) as caught:
        make("supervised", True).take(0, loaded(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_with_or_without_the_compiler(recipe, interrupted, tmp_path, monkeypatch, first):
    monkeypatch.setattr(building, "build", lambda config, outputs, channels: small(outputs))
    engine = {"steps": 6, "log_every": 1, "eval_every": 3, "save_every": 2}
    with_it, without = (validate(recipe(engine=engine | {"compile": at}), "recipe") for at in (True, False))
    with interrupted("semiseg.engine.step.make_batch", 4):
        api.train(with_it if first else without, tmp_path / "run")
    graphs = counters["stats"]["unique_graphs"]
    run = api.train(without if first else with_it, tmp_path / "run")
    assert (graphs, counters["stats"]["unique_graphs"]) == ((3, 3) if first else (0, 3))
    undisturbed = api.train(without, tmp_path / "whole")
    for kind in ("train", "val"):
        for one, other in zip(run.metrics(kind), undisturbed.metrics(kind), strict=True):
            key = "loss" if kind == "train" else "miou"
            assert one[key] == pytest.approx(other[key], abs=CLOSE)
    one, other = (checkpoint.newest(each.checkpoints) for each in (run, undisturbed))
    assert one.model_state().keys() == other.model_state().keys()
    assert one.optimizer_state().keys() == other.optimizer_state().keys()
