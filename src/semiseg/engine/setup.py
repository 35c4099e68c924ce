"""Sets up what the steps of a run need: method, optimizers, loaders. A training and a dry run get the same."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from semiseg import methods
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.loader import EvalItem, check_loading, eval_loader, train_loader
from semiseg.data.pseudo import counts_of_labels
from semiseg.data.restart import OnRestart, RestartingLoader
from semiseg.engine import pseudo_quality, trackers
from semiseg.engine.runtime import Runtime
from semiseg.engine.step import Stepper, check_shapes
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.models import build
from semiseg.recipe.recipe import Recipe
from semiseg.rng import seeded
from semiseg.types import ClassTable, LoadedBatch


class Setup:
    """The method of a recipe on its device, with its optimizers, and the loaders for this process.

    Args:
        recipe: the recipe of the run.
        dataset: the dataset of the recipe.
        runtime: where to compute.

    Attributes:
        method: the method; its weights may be loaded until `stepper.start` is called.
        stepper: takes the steps.
        images_per_step: number of labeled and unlabeled images of a step, over all processes.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, runtime: Runtime) -> None:
        self.recipe, self.dataset, self.runtime = recipe, dataset, runtime
        method = build_method(recipe, dataset.classes, counts_of_labels(dataset))
        self.method = method.to(runtime.device).to(memory_format=torch.channels_last)
        self.stepper = Stepper(recipe, self.method, runtime)
        self.images_per_step = recipe.engine.batch_size * self.method.views.images_per_slot

    def train_loader(self, steps: range, on_restart: OnRestart = lambda key, reason: None) -> Iterable[LoadedBatch]:
        """Makes the loader of this process's share of the batches of these steps."""
        return train_loader(
            self.dataset,
            self.recipe.data,
            self.method.views,
            batch_size=self.recipe.engine.batch_size // self.runtime.world_size,
            seed=self.recipe.engine.seed,
            start=steps.start,
            num_steps=steps.stop,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            on_restart=on_restart,
        )

    def eval_loader(
        self, samples: Sequence[Sample], on_restart: OnRestart = lambda key, reason: None, workers: int | None = None
    ) -> RestartingLoader[EvalItem]:
        """Makes the loader of this process's share of the samples; `workers` None: as many as the recipe says."""
        config = self.recipe.data
        if workers is not None:
            config = config.model_copy(update={"workers": workers})
        return eval_loader(
            samples,
            self.dataset,
            config,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            on_restart=on_restart,
        )


def check_settings(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> int:
    """Checks before a run that its settings, its images and its processes fit together. It reads no image.

    Returns:
        The number of parameters that are trained.

    Raises:
        UserError: they do not.
    """
    recipe.engine.part_size(runtime.world_size)
    trackers.check(recipe.engine.trackers)
    method = build_method(recipe, dataset.classes)
    pseudo_quality.samples(dataset, recipe.engine.pseudo_label_images)
    groups = method.groups(recipe.optim)  # raises an error where the networks do not allow these settings
    check_loading(dataset, recipe.data, method.views, recipe.engine.batch_size, recipe.engine.steps)
    check_shapes(recipe, method, runtime)
    return sum(parameter.numel() for group in groups for parameter in group.parameters)


def build_method(recipe: Recipe, classes: ClassTable, counts: Sequence[Mapping[int, int]] | None = None) -> SemiMethod:
    """Builds the method with its networks. Network number k is initialized inside `seeded(seed, "init", k)`.

    So two methods that build their first network from the same model section start from the same weights. All other
    random values of a new method, e.g. the weights of its own layers, are drawn inside `seeded(seed, "method")`.

    Args:
        recipe: the recipe.
        classes: the classes of its data.
        counts: number of pixels of each class in each labeled image; None if nothing is trained.
    """
    built = 0

    def build_next(outputs: int | None = None, channels: int = 3, model: build.Config | None = None) -> build.Network:
        nonlocal built
        with seeded(recipe.engine.seed, "init", built):
            network = build.build(model or recipe.model, outputs or len(classes), channels)
        built += 1
        return network

    method = methods.load(recipe.method_name)
    if recipe.engine.compile and not method.compiles:
        raise UserError(
            f"engine.compile: method {recipe.method_name} calls the parts of its networks, and only whole networks are "
            "compiled; use compile: false"
        )
    loss = recipe.method.labeled_loss.fitted(classes.names, counts)
    config = recipe.method.model_copy(update={"labeled_loss": loss})
    with seeded(recipe.engine.seed, "method"):
        return method(config, build_next, classes)
