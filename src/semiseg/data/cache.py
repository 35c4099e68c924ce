"""A cache of decoded images, in memory that the loader processes share."""

import math
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from semiseg.errors import UserError

SHARED = Path("/dev/shm")  # where Linux keeps shared memory; often small in a container


class Cache:
    """Keeps the decoded images of a list, so that each is decoded once in a run.

    The whole memory is allocated at the start. The loader processes of one training process share it, however they are
    started. If two processes decode an image at the same time, they write the same bytes.

    Args:
        sizes: (height, width) of each image, px; None for an image that is not kept.
        planes: number of uint8 values for each pixel: 3, or 4 for an image with its mask.
        spare: bytes of shared memory that must stay free for other uses.

    Raises:
        UserError: there is not enough shared memory.
    """

    def __init__(self, sizes: Sequence[tuple[int, int] | None], planes: int, spare: int = 0) -> None:
        self.sizes, self.planes = sizes, planes
        lengths = (size[0] * size[1] * planes if size else 0 for size in sizes)
        self.starts = [0, *accumulate(lengths)]
        needed = self.starts[-1]
        if needed + spare > free():
            raise _too_much(needed, spare)
        try:
            self.content = torch.empty(needed, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
            self.kept = torch.zeros(len(sizes), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # another process took the memory in the meantime
            raise _too_much(needed, spare) from error

    def get(self, index: int, decode: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Returns image `index` (3, h, w) and its mask (h, w), if it has one. Calls `decode` if it is not kept yet."""
        size = self.sizes[index]
        if size is None:
            return decode()
        content = self.content[self.starts[index] : self.starts[index + 1]]
        image = content[: 3 * size[0] * size[1]].view(*size, 3).permute(2, 0, 1)  # channels last, as decoders do
        found = (image, content[image.numel() :].view(size)) if self.planes == 4 else (image,)
        if not self.kept[index]:
            decoded = decode()
            if any(new.shape != place.shape for new, place in zip(decoded, found, strict=True)):
                return decoded  # the file was replaced in the meantime, or its header states a wrong size
            for place, new in zip(found, decoded, strict=True):
                place.copy_(new)
            self.kept[index] = True
        return found


def free() -> int | float:
    """Returns the free bytes of shared memory; infinite where a system has no such limit."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else math.inf


def _too_much(needed: int, spare: int) -> UserError:
    return UserError(
        f"data.cache: decoded images take {needed / 1e9:.2f} GB and batches {spare / 1e9:.2f} GB in each process of "
        f"this run, and {SHARED} has {free() / 1e9:.2f} GB free; use cache: false, a smaller long_side (it only "
        "makes large JPEGs smaller), or give the machine or container more shared memory"
    )


def megabytes(size: int | float) -> str:
    """Writes a number of bytes as megabytes."""
    return f"{size / 1e6:.2f} MB"
