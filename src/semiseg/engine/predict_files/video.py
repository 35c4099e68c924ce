"""Reads videos frame by frame, with PyAV (extra `video`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from semiseg.errors import UnreadableError, UserError

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})


def count_frames(path: Path) -> int:
    """Returns the number of frames: what the file's header says, else the number of its packets.

    Raises:
        UserError: PyAV is not installed.
        UnreadableError: the file is no readable video.
    """
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            number = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable(path) from error
    if not number:
        raise _unreadable(path)
    return int(number)


def frames(path: Path) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """Yields the frames in the order in which they are shown, upright.

    Raises:
        UserError: PyAV is not installed.
        UnreadableError: the file is no readable video, or it is damaged from here on.
    """
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise, as phones note it
                if turns:
                    pixels = np.ascontiguousarray(np.rot90(pixels, turns))
                yield torch.from_numpy(pixels).permute(2, 0, 1)
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable(path) from error


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f'{path}: is a video, which cannot be read here; pip install "semiseg[video]"') from error
    av.logging.set_level(av.logging.PANIC)  # our own messages say what is wrong
    return av


def _unreadable(path: Path) -> UnreadableError:
    return UnreadableError(f"{path}: not a readable video (damaged, cut off or no video at all); replace or remove it")
