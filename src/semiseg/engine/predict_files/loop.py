"""Predicts files and writes the outputs of each; goes on where an earlier prediction stopped."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from semiseg.data.dataset import Unused
from semiseg.engine.predict_files import geo, summaries, video
from semiseg.engine.predict_files.ahead import Reader, Writer, writing
from semiseg.engine.predict_files.inputs import CannotReadError, Item, find
from semiseg.engine.predict_files.look import SHOWN, look
from semiseg.engine.predict_files.model import Model
from semiseg.engine.predict_files.options import Options
from semiseg.engine.predict_files.outputs import OUTPUTS, Predicted, photo_of
from semiseg.engine.predict_files.plan import Plan, Task, check_window
from semiseg.engine.predict_files.raster import (
    InMemory,
    Picture,
    has_rasterio,
    is_georeferenced,
    is_large,
    opened,
)
from semiseg.engine.predict_files.segment import segment
from semiseg.engine.runtime import Runtime, return_freed_memory
from semiseg.errors import UnreadableError, UserError, listed


@dataclass(frozen=True)
class Times:
    """Where the time of a prediction went, s, for one process.

    Attributes:
        total: from the first image to the last.
        read: while the model waited for images that were not decoded yet.
        write: while the model waited for files that were not written yet.
    """

    total: float
    read: float
    write: float


def predict_files(
    model: Model,
    images: Path | str | Sequence[Path | str],
    out: Path,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_unused: Callable[[Unused], None] = lambda unused: None,
    options: Options | None = None,
    runtime: Runtime | None = None,
    on_times: Callable[[Times], None] = lambda times: None,
) -> int:
    """Writes the outputs of each image: by default an index mask and an overlay.

    The pixels of `<name>.png` are class indices, and its palette has the colors of the classes. `<name>_overlay.png`
    shows these colors over the image, and `classes.png` names them. The output has the same folders as `images`.

    Each file has a mark: a digest of the model, the options and the image file. So an interrupted prediction goes on:
    outputs that have this mark are done, and files without it are never overwritten. `options.overwrite` replaces files
    with another mark.

    Args:
        model: the trained model.
        images: files, folders, patterns or videos.
        out: folder to write into.
        on_image: called with the number of images that are done and the number of all images.
        on_unused: called with files that are no images.
        options: what to write, and how to predict; None: masks and overlays.
        runtime: the processes that share the images; None: this process predicts all.
        on_times: called at the end.

    Returns:
        The number of images.

    Raises:
        UserError: there is no image; an option is wrong; an output file exists already that comes from elsewhere, from
            another network or from another image; or a file cannot be written. Some images cannot be read: then the
            others are written.
    """
    options = options or Options()
    check_window(options, model)
    given = [images] if isinstance(images, (str, Path)) else list(images)
    items = find(given, out, on_unused)
    return predict_items(model, items, out, on_image, on_unused, options, runtime, on_times)


def predict_items(
    model: Model,
    items: Sequence[Item],
    out: Path,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_unused: Callable[[Unused], None] = lambda unused: None,
    options: Options | None = None,
    runtime: Runtime | None = None,
    on_times: Callable[[Times], None] = lambda times: None,
) -> int:
    """Does what `predict_files` does, for images that `find` has found."""
    options = options or Options()
    rank, world_size = (runtime.rank, runtime.world_size) if runtime else (0, 1)
    check_window(options, model)
    plan = Plan(model, options, out, rank, world_size)
    tasks, done = plan.tasks(items)
    if rank == 0:
        look(items, on_unused)
    _note_geo(items, options, on_unused)
    _note_shrunk(items, options, model, on_unused)
    if plan.others:
        what = f"files in {out} of another checkpoint or other options, which stay"
        on_unused(Unused(what, plan.others, "replace them with their kinds in --write and with --overwrite"))
    share = _Share(model, options, plan, done, len(items), on_image)
    failure: UserError | None = None
    try:
        share.predict(tasks)
    except UserError as error:
        failure = error
    on_times(share.times)
    own = (share.broken, share.failed, None if failure is None else str(failure), share.done)
    if runtime is None or world_size == 1:
        reports = [own]
    else:
        with runtime.together():
            reports = runtime.gather_lists([own])
    if failures := [says for *_, says, _ in reports if says is not None]:
        written = sum(number for *_, number in reports)
        raise UserError(
            f"{failures[0]}; {written} of {len(items)} images were written to {out}; the same command goes on"
        ) from failure
    broken = [error for errors, *_ in reports for error in errors]
    failed = sum(number for _, number, *_ in reports)
    if rank == 0 and failed < len(items):
        summaries.write(out, options.write, model.classes)
    if broken:
        raise UserError(_broken(broken, failed, len(items), out))
    return len(items)


class _Share:
    """Predicts the images of one process.

    Attributes:
        done: number of images whose outputs are written.
        broken: what is wrong with images that cannot be read.
        times: where the time went.
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        plan: Plan,
        done: int,
        total: int,
        on_image: Callable[[int, int], None],
    ) -> None:
        self.model, self.options, self.plan = model, options, plan
        self.total, self.on_image = total, on_image
        self.done, self.failed = done, 0
        self.broken: list[str] = []
        self.times = Times(0.0, 0.0, 0.0)
        for number in range(1, done + 1):
            self._count(number)

    def predict(self, tasks: Sequence[Task]) -> None:
        """Predicts, and writes what is missing."""
        start, read_s = time.perf_counter(), 0.0
        on_cpu = self.model.device.type == "cpu"
        threads = min(4, os.cpu_count() or 1)
        with writing(1 if on_cpu else threads, 2 if on_cpu else 2 * threads, self._written) as writer:
            for moving, group in groupby(tasks, lambda task: task.item.file if task.item.frame is not None else None):
                read = self._read if moving is None else _Frames(moving, self.plan)
                reader = Reader(read, threads if moving is None else 1, 2 * threads)
                for task, result in reader(group):
                    try:
                        self._predict(task, result(), writer)
                    except (CannotReadError, UnreadableError) as error:
                        self._failed(error)
                read_s += reader.waited_s
        self.times = Times(time.perf_counter() - start, read_s, writer.waited_s)

    def _predict(self, task: Task, image: UInt8[Tensor, "3 h w"] | None, writer: Writer) -> None:
        if image is not None:
            writer.submit(self._writing(task, InMemory(image)))
            return
        writer.finish()  # one large image at a time
        with ExitStack() as open_files:
            with _readable(task.item.file):
                picture = open_files.enter_context(opened(task.item.file, self.model.white))
            write = self._writing(task, picture)
        del picture  # its memory is needed for writing
        return_freed_memory()
        writer.submit(write)
        writer.finish()

    def _writing(self, task: Task, picture: Picture) -> Callable[[], None]:
        """Predicts a picture, and returns a function that writes its outputs."""
        label, probability = segment(self.model, picture, self.options, "probabilities" in task.missing)
        photo = photo_of(picture) if "overlays" in task.missing else None
        found = Predicted(
            task.item, photo, label, probability, self.model.classes, self.options.tracing, self.plan.digests
        )

        def write() -> None:
            for kind, path in task.missing.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                OUTPUTS[kind].write(found, path, self.plan.mark(task.item, kind))
            self.plan.forget(task.item)

        return write

    def _read(self, task: Task) -> UInt8[Tensor, "3 h w"] | None:
        """Reads an image; None if it is large. Then it is read by windows later."""
        file = task.item.file
        with _readable(file):
            if is_large(file):
                return None
            with opened(file, self.model.white) as picture:
                image = picture.window(0, 0, *picture.size)
            self.plan.mark(task.item, "masks")  # reads the file for its digest while others are predicted
            return image

    def _written(self) -> None:
        self.done += 1
        self._count(self.done + self.failed)

    def _failed(self, error: UserError) -> None:
        self.failed += 1
        if str(error) not in self.broken:
            self.broken.append(str(error))
        self._count(self.done + self.failed)

    def _count(self, number: int) -> None:
        self.on_image(min(number * self.plan.world_size, self.total), self.total)


class _Frames:
    """Reads the frames of a video that tasks ask for, in order."""

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file, self.plan = file, plan
        self.frames: Iterator[Tensor] | None = None
        self.number = 0

    def __call__(self, task: Task) -> UInt8[Tensor, "3 h w"]:
        """Returns the frame of a task."""
        assert task.item.frame is not None
        self.plan.mark(task.item, "masks")
        with _readable(self.file):
            self.frames = self.frames or video.frames(self.file)
            for image in self.frames:
                self.number += 1
                if self.number == task.item.frame:
                    return image
        raise CannotReadError(f"{self.file}: ends after frame {self.number}, though its header has more")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns each error about the image into one that does not end the prediction of others."""
    try:
        yield
    except CannotReadError:
        raise
    except UserError as error:
        raise CannotReadError(str(error)) from error


def _note_shrunk(items: Iterable[Item], options: Options, model: Model, on_unused: Callable[[Unused], None]) -> None:
    if model.long_side is None or options.window is not None:
        return
    large: list[Path] = []
    for item in items:
        with suppress(UserError):  # a file that cannot be read is told later
            if item.frame is None and is_large(item.file):
                large.append(item.file)
    if large:
        what = f"large images that are shrunk to a long side of {model.long_side} px, as photographs were in training"
        on_unused(
            Unused(what, tuple(large), "--window N predicts them in parts; N px as large as a training photograph")
        )


def _note_geo(items: Iterable[Item], options: Options, on_unused: Callable[[Unused], None]) -> None:
    if "masks" not in options.write or has_rasterio():
        return
    lost = [item.file for item in items if item.file.suffix.lower() in geo.SUFFIXES and is_georeferenced(item.file)]
    if lost:
        what = "georeferenced TIFFs, whose masks will have no georeference"
        on_unused(Unused(what, tuple(lost), 'pip install "semiseg[geo]" keeps it'))


def _broken(errors: list[str], failed: int, total: int, out: Path) -> str:
    if total == 1:
        return errors[0]
    rest = f"the other {total - failed} were written to {out}; " if failed < total else ""
    shown = listed(errors, SHOWN, "; ")
    return f"{failed} of {total} images cannot be read; {rest}the same command goes on with the missing ones: {shown}"
