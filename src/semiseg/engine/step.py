"""Takes one optimizer step, with any number of processes and micro-batches.

`check_shapes` finds before a run what the first step would refuse.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from semiseg.augment.views import make_batch
from semiseg.engine import pseudo_shares
from semiseg.engine.compiled import compile_networks, compiling
from semiseg.engine.optimizers import Optimizers
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.method import SemiMethod, predictor
from semiseg.recipe.recipe import Recipe
from semiseg.rng import seed_global, seeded
from semiseg.types import IGNORE, LoadedBatch, Losses, Part, Progress, SemiBatch


class Stepper:
    """Takes the steps of a recipe.

    All processes share the batch of a step, and each process may split its share into micro-batches. All parts together
    take the same step as one pass over the whole batch: the observations of all unlabeled images are joined before the
    first gradient, random draws are made for the whole batch, and the loss of a part is its share of the whole loss.
    Only batch statistics are those of a part (with SyncBN those of a micro-batch over all GPUs).

    Args:
        recipe: the recipe of the run.
        method: the method, on its device; its weights are trained in place.
        runtime: device, precision and processes.
    """

    def __init__(self, recipe: Recipe, method: SemiMethod, runtime: Runtime) -> None:
        self.recipe, self.method, self.runtime = recipe, method, runtime
        self.optimizers = Optimizers(recipe.optim, method)
        self.part_size = recipe.engine.part_size(runtime.world_size)
        self.pseudo_shares: Tensor | None = None  # of the last step: of all pixels, those with a label of each class
        self.wrapped: Any = None  # set by `start`; until then weights may be loaded

    def start(self) -> None:
        """Wraps the method for several processes and low precision. Weights must be loaded before."""
        self.method.train()
        if self.recipe.engine.compile:
            compile_networks(self.method)
        self.wrapped = self.runtime.prepare(self.method)

    def take(self, step: int, loaded: LoadedBatch) -> Losses:
        """Takes step `step` on this process's share of its batch, on the device. Returns its share of the losses."""
        with compiling() if self.recipe.engine.compile else nullcontext():
            return self._take(step, loaded)

    def _take(self, step: int, loaded: LoadedBatch) -> Losses:
        engine, runtime = self.recipe.engine, self.runtime
        self.optimizers.set_lr(step, engine.steps)
        batches = self._batches(step, loaded)
        at = Progress(step, engine.steps, engine.seed)
        shares, parts = [], self._parts(batches, at)
        for number, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            seed_global(engine.seed, "step", step, runtime.rank * len(parts) + number)  # dropout
            with runtime.reducing(self.wrapped, number == len(parts) - 1), _enough_for_batch_norm(self.part_size):
                share = self.wrapped(batch, at, part)
                runtime.backward(share.total)
            shares.append(share)
        norm = self.optimizers.step(runtime.scaler)
        runtime.average_batch_statistics(self.method)
        with torch.no_grad():
            self.method.after_step(at, parts[0].observed)
            threshold = getattr(self.recipe.method, "threshold", None)
            self.pseudo_shares = pseudo_shares.shares(parts[0].observed, threshold)
        return _sum(shares, norm / runtime.world_size)

    def _batches(self, step: int, loaded: LoadedBatch) -> list[SemiBatch]:
        """Splits the share into micro-batches. Their strong views are those of the same images in the whole batch."""
        views, seed, world_size = self.method.views, self.recipe.engine.seed, self.runtime.world_size
        normalize = predictor(self.method)[0].normalization
        first, whole_size = self.runtime.rank * len(loaded.image), world_size * len(loaded.image)
        batches = []
        for micro in loaded.split(self.part_size):
            batches.append(make_batch(micro, views, normalize, seed, step, first, whole_size))
            first += len(micro.image)
        return batches

    def _parts(self, batches: list[SemiBatch], at: Progress) -> list[Part]:
        """Observes all batches, joins the observations of all processes, and returns the `Part` for each batch."""
        runtime = self.runtime
        with torch.no_grad(), runtime.autocast():
            observed = [self.method.observe(batch, at) for batch in batches]
        pixels = torch.stack([torch.stack([(one.label != IGNORE).sum(), one.valid.sum()]) for one in batches]).sum(0)
        labeled_px, valid_px = runtime.sum(pixels).unbind()
        everyone = _join(observed, runtime)
        num_slots = sum(len(batch.image) for batch in batches)
        first, parts = runtime.rank * num_slots, []
        for batch in batches:
            rows = slice(first, first + len(batch.image))
            share = len(batch.image) / (runtime.world_size * num_slots)
            parts.append(Part(everyone, _rows(everyone, rows), rows, share, labeled_px, valid_px))
            first = rows.stop
        return parts


def check_shapes(recipe: Recipe, method: SemiMethod, runtime: Runtime) -> None:
    """Raises what a training step would refuse because of the numbers and sizes of its images.

    It passes a micro-batch through the method on the meta device, whose tensors have shapes and no values. This takes a
    fraction of a second and no memory, whatever the networks and the crop. Errors of other kinds are left to the first
    step: the meta device does not compute all that a real one does.

    Args:
        recipe: the recipe of the run.
        method: a method that is not used afterwards: its weights are lost.
        runtime: the processes of the run.

    Raises:
        UserError: batch norm would get a single value per channel, or the method refuses its batch.
    """
    engine, crop = recipe.engine, recipe.data.crop_size
    part_size = engine.part_size(runtime.world_size)
    images = part_size * (runtime.world_size if runtime.synchronizes_batch_norm else 1)
    batch = method.views.blank(images, crop, "meta")
    method.to("meta").train()
    with seeded(engine.seed, "shapes"), torch.no_grad():
        try:
            with _enough_for_batch_norm(part_size):
                method.losses(batch, Progress(0, engine.steps, engine.seed))
        except UserError:
            raise
        except Exception:
            return


@contextmanager
def _enough_for_batch_norm(part_size: int) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # RuntimeError: the compiler also runs the network
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"engine.micro_batch_size: batch norm cannot learn from {part_size} labeled image at a time; use a larger "
            "micro_batch_size, a larger engine.batch_size or fewer processes"
        ) from error


def _join(observed: list[Any], runtime: Runtime) -> Any:
    """Joins the rows of all parts: process by process, and part by part within a process."""
    if observed[0] is None:
        return None
    kind = type(observed[0])
    columns = {field.name: [getattr(part, field.name) for part in observed] for field in fields(kind)}
    return kind(**{name: runtime.gather(_cat(tensors)) for name, tensors in columns.items()})


def _rows(everyone: Any, rows: slice) -> Any:
    """Returns some rows of what was observed."""
    if everyone is None:
        return None
    return replace(everyone, **{field.name: getattr(everyone, field.name)[rows] for field in fields(everyone)})


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _sum(shares: list[Losses], norm: Tensor) -> Losses:
    """Sums the shares of a process's parts, joins the hardness of its images, adds its share of the gradient norm."""
    hardness = [share.hardness for share in shares if share.hardness is not None]
    names = shares[0].scalars
    return Losses(
        total=torch.stack([share.total.detach() for share in shares]).sum(),
        scalars={name: torch.stack([share.scalars[name] for share in shares]).sum() for name in names}
        | {"gradient_norm": norm},
        hardness=_cat(hardness) if hardness else None,
    )
