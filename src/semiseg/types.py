"""The values that pass between the rooms of the house."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from semiseg.rng import fold_in

IGNORE = 255  # label of pixels that count nowhere: unlabeled, void, or padded


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset: class index i is `names[i]`.

    Attributes:
        names: one name a class.
        colors: one RGB triple (0-255) a class, for palettes and overlays.
        background: index of the class that means "nothing of interest", None where there is no such class. Class 0 is
            not assumed to be one.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: int | None = None

    @classmethod
    def of(cls, names: list[str] | tuple[str, ...], background: int | None = None) -> "ClassTable":
        """A table with the palette of PASCAL VOC, which keeps neighboring indices apart."""
        return cls(tuple(names), tuple(voc_color(i) for i in range(len(names))), background)

    def __len__(self) -> int:
        return len(self.names)


def voc_color(index: int) -> tuple[int, int, int]:
    """RGB of class `index` in the palette of PASCAL VOC: its bits, dealt to R, G, B in turn, fill them from the top."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red, green, blue


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of an encoder's input, per channel, for images in [0, 1]."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalized fp32 images from uint8 ones."""
        # Not torch.tensor(..., device=...): it waits until it has copied.
        mean = torch.tensor(self.mean).to(image.device, non_blocking=True)[:, None, None]
        std = torch.tensor(self.std).to(image.device, non_blocking=True)[:, None, None]
        own = image.to(torch.float32, copy=True)
        return own.div_(255).sub_(mean).div_(std)  # in place: new memory costs a CPU more than the arithmetic


@dataclass(frozen=True)
class LoadedBatch:
    """What the loader's workers make: uint8 on the CPU, geometry done, photometry not."""

    image: UInt8[Tensor, "b 3 h w"]
    label: UInt8[Tensor, "b h w"]  # class index, or IGNORE
    weak: UInt8[Tensor, "u 3 h w"]
    valid: Bool[Tensor, "u h w"]  # False where the crop was padded
    labeled_index: Int[Tensor, " b"]  # positions in the labeled list
    index: Int[Tensor, " u"]  # positions in the unlabeled pool
    skipped: tuple[str, ...] = ()  # files that could not be read; other images took their places

    def to(self, device: torch.device) -> "LoadedBatch":
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "LoadedBatch":
        """The same batch in pinned memory (called by the DataLoader)."""
        return self._each(Tensor.pin_memory)

    def split(self, size: int) -> list["LoadedBatch"]:
        """Its micro-batches of `size` labeled images, and as many unlabeled ones, in order."""
        starts = range(0, len(self.image), size)
        return [self._each(lambda tensor, start=start: tensor[start : start + size]) for start in starts]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LoadedBatch":
        changed: dict[str, Any] = {n: change(value) for n, value in self._tensors().items()}
        return replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def __reduce__(self) -> Any:
        """From process to process in one piece: each tensor handed over by itself takes as long as a small image."""
        tensors = dict(sorted(self._tensors().items(), key=lambda item: -item[1].element_size()))  # for alignment
        kinds = {name: (value.dtype, value.shape) for name, value in tensors.items()}
        return _unpacked, (
            torch.cat([value.flatten().view(torch.uint8) for value in tensors.values()]),
            kinds,
            self.skipped,
        )


def _unpacked(
    content: UInt8[Tensor, " n"], kinds: dict[str, tuple[torch.dtype, torch.Size]], skipped: tuple[str, ...]
) -> LoadedBatch:
    pieces = torch.split(content, [dtype.itemsize * shape.numel() for dtype, shape in kinds.values()])
    tensors = {
        name: piece.view(dtype).view(shape) for (name, (dtype, shape)), piece in zip(kinds.items(), pieces, strict=True)
    }
    return LoadedBatch(**tensors, skipped=skipped)


@dataclass(frozen=True)
class SemiBatch:
    """What a method sees, on the device. `u` is 0 for methods that do not look at unlabeled images."""

    image: Float[Tensor, "b 3 h w"]  # labeled, weakly augmented, normalized
    label: Int[Tensor, "b h w"]  # class index, IGNORE where unlabeled or padded
    weak: Float[Tensor, "u 3 h w"]  # unlabeled, weakly augmented, normalized
    strong: tuple[Float[Tensor, "u 3 h w"], ...]  # as many as the method's Views ask for, pixel-aligned with weak
    valid: Bool[Tensor, "u h w"]  # False where the crop was padded
    index: Int[Tensor, " u"]  # position in the unlabeled pool


@dataclass(frozen=True)
class Whole:
    """The whole batch of a step. A forward pass may see a part of it: a process has a share, in micro-batches.

    Attributes:
        num_labeled: labeled images in it.
        labeled_px: labeled pixels in it.
        observed: what the method's `observe` returned for it: every tensor has a row for each unlabeled image.
        rows: those of the part's unlabeled images.
    """

    num_labeled: int
    labeled_px: Int[Tensor, ""]
    observed: Any
    rows: slice


@dataclass(frozen=True)
class Prediction:
    """Hard prediction of a network, with the probability it gives it."""

    label: Int[Tensor, "b h w"]  # argmax class
    confidence: Float[Tensor, "b h w"]  # its probability, fp32
    num_classes: int


@dataclass(frozen=True)
class Losses:
    """What a method yields for one part of a step's batch. Everything but `total` is detached and stays on the device.

    Losses and scalars are shares: summed over the parts they are those of the whole batch.
    """

    total: Float[Tensor, ""]
    scalars: dict[str, Float[Tensor, ""]] = field(default_factory=dict)  # for the progress bar and the metrics file
    hardness: Float[Tensor, " u"] | None = None  # gamma of Eq. 7, per unlabeled image of the batch


@dataclass(frozen=True)
class Progress:
    """Where in the run a step is, and the randomness that belongs to it."""

    step: int
    num_steps: int
    seed: int = 0

    def generator(self, *where: int | str) -> torch.Generator:
        """The generator of this step for the purpose `where`; draw for the whole batch, then take the part's rows."""
        return fold_in(self.seed, *where, self.step)
