"""The weights that a run starts from are a function of its recipe."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semiseg import methods
from semiseg.engine.setup import build_method
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models import build
from semiseg.recipe.load import validate
from semiseg.recipe.recipe import Recipe
from semiseg.rng import seeded
from semiseg.types import ClassTable

CLASSES = ClassTable.of(("sky", "tree"))


class Own(SemiMethod, config=MethodConfig):
    """Two networks, and layers of its own before, between and behind them."""

    def __init__(self, config: Any, build: build.Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.before = nn.Linear(2, 3)
        self.student = build()
        self.projector = nn.Linear(2, 3)
        self.other = build()
        self.behind = nn.Linear(2, 3)


@pytest.fixture
def own(recipe, monkeypatch) -> Recipe:
    validated = validate(recipe("supervised", engine={"seed": 3}), "recipe")
    monkeypatch.setattr(methods, "load", lambda name: {"own": Own}[name])
    return replace(validated, method_name="own", method=MethodConfig())


def weights(recipe: Recipe) -> dict[str, Tensor]:
    return build_method(recipe, CLASSES).state_dict()


def test_layers_besides_the_networks_depend_on_the_seed_alone(own):
    first = weights(own)
    torch.rand(7)  # whatever else a program draws
    state = torch.get_rng_state()
    again = weights(own)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    seed = own.engine.model_copy(update={"seed": 4})
    other = weights(replace(own, engine=seed))
    layers = [f"{name}.weight" for name in ("before", "projector", "behind")]
    assert not any(torch.equal(first[layer], other[layer]) for layer in layers)
    assert len({first[layer].sum().item() for layer in layers}) == 3


def test_networks_have_initializations_of_their_own(own):
    """Network number k of every method is this one."""
    found = weights(own)
    for number, name in enumerate(("student", "other")):
        with seeded(3, "init", number):
            network = build.build(own.model, 2)
        assert all(torch.equal(value, found[f"{name}.{key}"]) for key, value in network.state_dict().items())


def test_a_method_may_build_networks_of_other_kinds(own, monkeypatch):
    """Each is the next network, whatever its outputs, channels and settings."""
    small = build.Config(architecture="fpn", encoder="tu-test_efficientnet", weights=None)

    class Critic(Own, config=MethodConfig):
        def __init__(self, config: Any, build: build.Build, classes: ClassTable) -> None:
            super().__init__(config, build, classes)
            self.critic = build(outputs=1, channels=5)
            self.another = build(model=small)

    monkeypatch.setattr(methods, "load", lambda name: Critic)
    found = build_method(own, CLASSES)
    image = torch.rand(1, 5, 32, 32)
    assert found.critic.eval()(image).shape == (1, 1, 32, 32)
    assert found.student.eval()(image[:, :3]).shape == found.another.eval()(image[:, :3]).shape == (1, 2, 32, 32)
    for number, name, arguments in ((2, "critic", (own.model, 1, 5)), (3, "another", (small, 2))):
        with seeded(3, "init", number):
            network = build.build(*arguments)
        assert network.state_dict().keys() == getattr(found, name).state_dict().keys()
        for key, value in network.state_dict().items():
            assert torch.equal(value, getattr(found, name).state_dict()[key])
