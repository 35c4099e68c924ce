"""Defines what a layout returns: lists of samples and a class table."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from semiseg.files import expanded
from semiseg.types import ClassTable

Side = Annotated[int, Field(gt=0, le=16384)]  # px
Scale = Annotated[float, Field(gt=0, le=10)]
Channel = Annotated[int, Field(ge=0, le=255)]
LongSide = Annotated[int, Field(ge=16, le=16384)]  # px
White = Annotated[int, Field(ge=2, le=65535)]


@dataclass(frozen=True)
class Sample:
    """One image on disk. `mask` is None if it has no mask: unlabeled images need none."""

    name: str  # its id: path below the image folder, without extension
    image: Path
    mask: Path | None = None
    line: str | None = field(default=None, compare=False)  # of a list, if it names this mask beside the image
    pseudo: bool = False  # whether the mask is a prediction of an earlier run
    indexed: bool = False  # whether the mask holds class indices of the upright image, whatever other masks hold


@dataclass(frozen=True)
class MaskCoding:
    """What the values and colors in mask files mean.

    Attributes:
        num_classes: size of the class table, at most 254.
        values: stored value -> class index, or IGNORE (e.g. Cityscapes' label ids, or gray 255 for class 1). Values
            that it does not contain are class indices already. None: all values are.
        colors: RGB color -> class index, or IGNORE. None: no color is known.
        orientation: whether masks are drawn on upright photographs, or on the pixels as they are stored, which viewers
            turn as EXIF says. None is like upright, but nobody has said so.
    """

    num_classes: int
    values: dict[int, int] | None = None
    colors: dict[tuple[int, int, int], int] | None = None
    orientation: Literal["upright", "stored"] | None = None


@dataclass(frozen=True)
class Unused:
    """Files below the folders of a dataset that are not used, for one reason.

    Attributes:
        what: what they are, e.g. "masks of no image".
        files: the files.
        remedy: what to do about them; empty if nothing needs to be done.
        matters: False for files that nobody means to use, e.g. those that an operating system writes.
    """

    what: str
    files: tuple[Path, ...]
    remedy: str = ""
    matters: bool = True

    def __str__(self) -> str:
        """Returns one line: what they are, how many, an example, what to do."""
        example = f"e.g. {self.files[0]}" if self.files[1:] else str(self.files[0])
        return f"{self.what}: {len(self.files)}, {example}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Dataset:
    """Three lists of samples that share no image, and the meaning of their masks.

    Attributes:
        labeled: samples with masks that training may read, also those with pseudo-labels.
        unlabeled: the pool; training never reads a mask of these, even where one exists.
        val: samples with masks for evaluation.
        classes: the class table.
        coding: the meaning of the values and colors in masks.
        unused: files below the folders that are not used.
        notes: what the layout has found that is worth knowing, one sentence each.
        class_counts: number of pixels of each class in each labeled image; None if they were not counted.
        tests: samples in a folder for tests, which are used for nothing.
    """

    labeled: tuple[Sample, ...]
    unlabeled: tuple[Sample, ...]
    val: tuple[Sample, ...]
    classes: ClassTable
    coding: MaskCoding
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    class_counts: tuple[dict[int, int], ...] | None = None
    tests: tuple[Sample, ...] = ()


class DataConfig(BaseModel):
    """Settings that every layout shares. Paths of lists are relative to `root` unless they are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layout: str
    root: Path
    labeled: Path | None = None  # list of labeled images; None: the layout's own default
    unlabeled: Path | None = None  # list of the unlabeled pool; None: every training image that is not labeled
    val: Path | None = None  # list of validation images; None: the layout's own default
    pseudo: Path | None = None  # folder of masks that an earlier run predicted for unlabeled images (pseudo-label)
    pseudo_share: float | None = Field(None, gt=0, le=1)  # of them: the most reliable ones (ST++); None: all
    long_side: LongSide | None = None  # px of the longer side; images are resized to it first; None: no resize
    val_long_side: LongSide | Literal["same"] | None = "same"  # for evaluation and prediction; same: long_side
    white: White | None = None  # value shown as white in images of more than 8 bits a channel; None: 65535
    crop: Side | tuple[Side, Side] = 513  # px, (height, width) or one number for both
    scale: tuple[Scale, Scale] = (0.5, 2.0)  # random scale, Table 1
    flip: float = Field(0.5, ge=0, le=1)  # probability of a horizontal flip, Table 1
    padding_color: tuple[Channel, Channel, Channel] = (124, 116, 104)  # RGB, around small images; ImageNet's mean
    # class_balanced draws a class for each turn, rare ones more often, and then an image that shows it (DAFormer)
    labeled_order: Literal["shuffled", "class_balanced"] = "shuffled"
    temperature: float | None = Field(None, gt=0)  # of class_balanced: the lower, the rarer classes; 0.01 if not given
    cache: bool = False  # keep decoded training images in memory that loader processes share
    workers: int = Field(2, ge=0, le=256)  # number of loader processes; the result does not depend on it
    # Whether masks are drawn on photographs that are turned as EXIF says, or on the stored pixels; None: upright
    mask_orientation: Literal["upright", "stored"] | None = None
    on_unreadable: Literal["error", "skip"] = "error"  # skip: in training another image replaces it

    @property
    def crop_size(self) -> tuple[int, int]:
        """Returns height and width of a training crop, px."""
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    @property
    def largest_side(self) -> int | None:
        """Returns the longest side that a training image can be resized to, px; None if it depends on the image."""
        return None if self.long_side is None else math.ceil(self.long_side * self.scale[1])

    @property
    def eval_long_side(self) -> int | None:
        """Returns the longer side of an image in evaluation and prediction, px; None: the image is not resized."""
        return self.long_side if self.val_long_side == "same" else self.val_long_side

    @field_validator("*")  # paths of layouts, too
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(expanded(one) if isinstance(one, Path) else one for one in value)
        return expanded(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _temperature_is_used(self) -> "DataConfig":
        if self.labeled_order == "shuffled" and self.temperature is not None:
            raise ValueError("temperature belongs to labeled_order: class_balanced; remove it or choose that order")
        return self

    @model_validator(mode="after")
    def _share_is_used(self) -> "DataConfig":
        if self.pseudo is None and self.pseudo_share is not None:
            raise ValueError("pseudo_share is a share of the masks in data.pseudo; name that folder or remove it")
        return self

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smaller scale comes first, e.g. {scale[::-1]}")
        return scale
