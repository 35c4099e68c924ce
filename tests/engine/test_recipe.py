"""The weights that a run starts from are a function of its recipe."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semiseg import config, methods
from semiseg.engine.recipe import Recipe, build_method
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models import build
from semiseg.rng import seeded
from semiseg.types import ClassTable

CLASSES = ClassTable.of(("sky", "tree"))


class Own(SemiMethod, config=MethodConfig):
    """Two networks, and layers of its own before, between and behind them."""

    def __init__(self, config: Any, build_model: Callable[[], build.Network], classes: ClassTable) -> None:
        super().__init__(config, build_model, classes)
        self.before = nn.Linear(2, 3)
        self.student = build_model()
        self.projector = nn.Linear(2, 3)
        self.other = build_model()
        self.behind = nn.Linear(2, 3)


@pytest.fixture
def own(recipe, monkeypatch) -> Recipe:
    validated = config.validate(recipe("supervised", engine={"seed": 3}), "recipe")
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
