"""The types of the values that the layers of semiseg pass to each other."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from semiseg.rng import fold_in

Labels = TypeVar("Labels", bound="PseudoLabels")

IGNORE = 255  # label of pixels that no loss and no score counts: unlabeled, void, or padded


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset: class index i is `names[i]`.

    Attributes:
        names: the name of each class.
        colors: the RGB color (0-255) of each class, for palettes and overlays.
        background: index of the class that means "nothing of interest"; None if there is no such class. It need not
            be class 0.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    background: int | None = None

    @classmethod
    def of(cls, names: list[str] | tuple[str, ...], background: int | None = None) -> "ClassTable":
        """Makes a table with the palette of PASCAL VOC, where classes with close indices have different colors."""
        return cls(tuple(names), tuple(voc_color(i) for i in range(len(names))), background)

    def __len__(self) -> int:
        return len(self.names)


def voc_color(index: int) -> tuple[int, int, int]:
    """Returns the RGB color of class `index` in the palette of PASCAL VOC.

    Bit 0 of the index is the highest bit of red, bit 1 that of green, bit 2 that of blue. Bits 3 to 5 are the next
    lower bits of the three, and so on.

    Example:
        Index 255 (ignored pixels) has the light color of the outlines in VOC's masks.

        >>> [voc_color(index) for index in (1, 2, 4, 8, 9, 255)]
        [(128, 0, 0), (0, 128, 0), (0, 0, 128), (64, 0, 0), (192, 0, 0), (224, 224, 192)]
    """
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
        """Returns the normalized images in fp32: (image / 255 - mean) / std."""
        # torch.tensor(..., device=...) would wait for the copy.
        mean = torch.tensor(self.mean).to(image.device, non_blocking=True)[:, None, None]
        std = torch.tensor(self.std).to(image.device, non_blocking=True)[:, None, None]
        own = image.to(torch.float32, copy=True)
        return own.div_(255).sub_(mean).div_(std)  # in place: on a CPU new memory takes longer than the arithmetic


@dataclass(frozen=True)
class LoadedBatch:
    """What the loader's workers make: uint8 images on the CPU, already scaled, flipped and cropped (the weak view)."""

    image: UInt8[Tensor, "b 3 h w"]
    label: UInt8[Tensor, "b h w"]  # class index, or IGNORE
    weak: UInt8[Tensor, "u 3 h w"]
    valid: Bool[Tensor, "u h w"]  # False where the crop was padded
    labeled_index: Int[Tensor, " b"]  # positions in the labeled list
    index: Int[Tensor, " u"]  # positions in the unlabeled pool
    # a second crop of each unlabeled image, padded as the first one; `s` is 0 if the method asks for none
    second: UInt8[Tensor, "s 3 H W"] = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))
    align: Float[Tensor, "s 2 2"] = field(default_factory=lambda: torch.empty(0, 2, 2))  # as `Second.align`
    # the stored pseudo-label of each unlabeled image; `p` is 0 if the method asks for none
    pseudo: UInt8[Tensor, "p y x"] = field(default_factory=lambda: torch.empty(0, 0, 0, dtype=torch.uint8))
    skipped: tuple[str, ...] = ()  # files that could not be read; other images took their places

    def to(self, device: torch.device) -> "LoadedBatch":
        """Moves the batch to `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "LoadedBatch":
        """Copies the batch to pinned memory (called by the DataLoader)."""
        return self._each(Tensor.pin_memory)

    def split(self, size: int) -> list["LoadedBatch"]:
        """Splits the batch into micro-batches of `size` labeled images and as many unlabeled ones, in order."""
        starts = range(0, len(self.image), size)
        return [self._each(lambda tensor, start=start: tensor[start : start + size]) for start in starts]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LoadedBatch":
        changed: dict[str, Any] = {n: change(value) for n, value in self._tensors().items()}
        return replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def __reduce__(self) -> Any:
        """Sends the batch to another process as one tensor. Each single tensor would cost as much as a small image."""
        # Larger elements come first, so that each piece is aligned.
        tensors = dict(sorted(self._tensors().items(), key=lambda item: -item[1].element_size()))
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
class Second:
    """A second crop of each unlabeled image, which overlaps the first one. It has a flip of its own.

    Attributes:
        weak: the weak view of the second crop, normalized.
        strong: its strong views, from the same pools as those of the first crop, with draws of their own.
        valid: False where the crop was padded. Both crops are padded alike, because they have the same scale.
        align: where the second crop shows what the first one shows, in px from the top left corner of a crop. The two
            numbers of an axis (rows, columns) are a factor and a shift: the second crop shows at `factor * y + shift`
            what the first one shows at `y`. The factor is -1 if one of them is flipped, else 1.
    """

    weak: Float[Tensor, "u 3 h w"]
    strong: tuple[Float[Tensor, "u 3 h w"], ...]
    valid: Bool[Tensor, "u h w"]
    align: Float[Tensor, "u 2 2"]


@dataclass(frozen=True)
class SemiBatch:
    """The batch that a method gets, on the device. `u` is 0 for methods that use no unlabeled images."""

    image: Float[Tensor, "b 3 h w"]  # labeled, weakly augmented, normalized
    label: Int[Tensor, "b h w"]  # class index, IGNORE where unlabeled or padded
    weak: Float[Tensor, "u 3 h w"]  # unlabeled, weakly augmented, normalized
    strong: tuple[Float[Tensor, "u 3 h w"], ...]  # as many as the method's Views ask for, pixel-aligned with weak
    valid: Bool[Tensor, "u h w"]  # False where the crop was padded
    index: Int[Tensor, " u"]  # position in the unlabeled pool
    second: Second | None = None  # None: the method's Views ask for none
    # the stored pseudo-label of each unlabeled image, IGNORE where padded; None: the method's Views ask for none
    pseudo: Int[Tensor, "u h w"] | None = None


@dataclass(frozen=True)
class Part:
    """What one forward pass knows about the whole batch of a step.

    The pass may get only a part of that batch: each process has a share, and may split it into micro-batches. The batch
    has slots: slot i holds labeled image i and unlabeled image i.

    Attributes:
        observed: what the method's `observe` returned for the whole batch: tensors with one row for each slot.
        own: the part's own rows of it.
        rows: the part's own slots, for draws that were made for the whole batch.
        share: the part's share of the slots.
        labeled_px: number of labeled pixels in the whole batch.
        valid_px: number of valid pixels of the unlabeled images in the whole batch.
    """

    observed: Any
    own: Any
    rows: slice
    share: float
    labeled_px: Int[Tensor, ""]
    valid_px: Int[Tensor, ""]

    @property
    def num_slots(self) -> int:
        """Returns the number of slots of the whole batch, for draws."""
        return round((self.rows.stop - self.rows.start) / self.share)


@dataclass(frozen=True)
class Prediction:
    """Hard prediction of a network, with its confidence."""

    label: Int[Tensor, "b h w"]  # class with the highest probability
    confidence: Float[Tensor, "b h w"]  # that probability, fp32
    num_classes: int


@dataclass(frozen=True)
class PseudoLabels:
    """Images with the labels that a teacher gave them."""

    image: Float[Tensor, "u 3 h w"]  # any view: weak or strong
    label: Int[Tensor, "u h w"]  # pseudo-label
    confidence: Float[Tensor, "u h w"]  # the teacher's probability of the pseudo-label
    valid: Bool[Tensor, "u h w"]  # False where the image was padded

    def __getitem__(self: Labels, images: slice | Int[Tensor, " n"]) -> Labels:
        """Returns the rows of some of the images."""
        return type(self)(*(value[images] for value in vars(self).values()))

    def pasted(self: Labels, patch: "PseudoLabels", box: Bool[Tensor, "u h w"]) -> Labels:
        """Pastes image, pseudo-label, confidence and padding of `patch` into the boxes (Eq. 9)."""
        return replace(
            self,
            image=torch.where(box[:, None], patch.image, self.image),
            label=torch.where(box, patch.label, self.label),
            confidence=torch.where(box, patch.confidence, self.confidence),
            valid=torch.where(box, patch.valid, self.valid),
        )

    def kept(self, threshold: float | Float[Tensor, ""]) -> Int[Tensor, "u h w"]:
        """Returns the labels of confident pixels. All others, and padded ones, are IGNORE."""
        return torch.where((self.confidence >= threshold) & self.valid, self.label, IGNORE)


@dataclass(frozen=True)
class Losses:
    """What a method returns for one part of a step's batch, on the device. All tensors but `total` are detached.

    `total` and `scalars` are shares: their sum over all parts is the value for the whole batch.
    """

    total: Float[Tensor, ""]
    scalars: dict[str, Float[Tensor, ""]] = field(default_factory=dict)  # for the progress bar and the metrics file
    hardness: Float[Tensor, " u"] | None = None  # gamma of Eq. 7, per unlabeled image of the batch


@dataclass(frozen=True)
class Progress:
    """The position of a step in its run, and the random generators of that step."""

    step: int
    num_steps: int
    seed: int = 0

    def generator(self, *where: int | str) -> torch.Generator:
        """Returns the step's generator for the purpose `where`. Draw for the whole batch, then take the part's rows."""
        return fold_in(self.seed, *where, self.step)
