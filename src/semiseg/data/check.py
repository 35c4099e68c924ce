"""Checks every file before the first step, so that a run does not fail after hours or learn what is wrong."""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from semiseg.data.annotated import AnnotatedConfig
from semiseg.data.catalog import folded
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample, Unused
from semiseg.data.explain import Meaning, explain
from semiseg.data.masks import Content, check_sizes, class_pixels, coding_of, percent, read_as, read_stored
from semiseg.data.memory import Memory
from semiseg.data.rasterize import overlap_of
from semiseg.data.read import Header, fit, has_more_pages, largest_value, read_header, read_image
from semiseg.errors import UnreadableError, UserError, listed
from semiseg.types import IGNORE

FEW = 16  # colors of a mask

T = TypeVar("T")
Size = tuple[int, int]  # px, (height, width)
_LOOKED_AT = 4096  # pixels of a photograph in which its colors are counted
_SHOWN = 12  # names in a note
_HARDLY = 0.0001  # share of the labeled pixels
_DEEP = 32  # photographs of more than 8 bits that are decoded to find their largest value


@dataclass(frozen=True)
class Part:
    """What one of the lists holds.

    Attributes:
        images: number of images that can be read.
        sizes: (height, width) of the smallest and of the largest image, by the number of pixels.
        pixels: number of pixels of each class, or IGNORE, in its masks.
        masks: number of its masks that show each class, or IGNORE.
    """

    images: int
    sizes: tuple[Size, Size] | None
    pixels: dict[int, int]
    masks: dict[int, int]


@dataclass(frozen=True)
class Report:
    """What the check has found.

    Attributes:
        parts: "labeled", "unlabeled" and "validation".
        meaning: what the values and colors of all masks mean.
        kinds: number of masks of each kind, e.g. "8-bit gray PNG" or "drawn from annotations".
        unused: files that are not used.
        notes: what may be wrong or is worth knowing, one sentence each.
    """

    parts: dict[str, Part]
    meaning: Meaning
    kinds: dict[str, int]
    unused: tuple[Unused, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Facts:
    """What was found in the files of a sample."""

    header: Header
    content: Content | None = None
    is_flat: bool = False  # the photograph has as few colors as a mask
    has_pages: bool = False  # the file holds other photographs or channels, too: pages, or frames of an animation
    overlap: int = 0  # pixels in which annotated objects of different classes overlap

    @property
    def size(self) -> Size:
        return self.header.size


def check(
    dataset: Dataset,
    config: DataConfig,
    full: bool = True,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Reads and checks every file that a run will read.

    Args:
        dataset: the data of the run.
        config: its root, long_side, crop, scale, white and on_unreadable.
        full: True decodes every photograph, False reads only their headers. Masks are always decoded. What was decoded
            once is not decoded again while the file stays as it is.
        on_image: called with the number of images that are done and the number of all images.

    Returns:
        What was found. With `on_unreadable: skip` images that cannot be read are in its notes.

    Raises:
        UserError: a file cannot be read, an image and its mask differ in size, masks hold values or colors that mean
            nothing or contradict each other, they show a single class, or no image can fill a crop. The message names
            the first such file and says how many more there are.
    """
    memory = Memory(config.root)
    drawn = isinstance(config, AnnotatedConfig)  # then nobody has made the files of the masks
    total, numbers = len(dataset.labeled) + len(dataset.val) + len(dataset.unlabeled), itertools.count(1)

    def look(sample: Sample) -> _Facts:
        header = read_header(sample.image)
        is_flat = full and memory.recall(sample.image, "flat", lambda: has_few_colors(read_image(sample.image)))
        is_flat = is_flat and header.largest <= 255  # dark photographs of 16 bits are flat, too
        has_pages = header.may_have_pages and memory.recall(sample.image, "pages", lambda: has_more_pages(sample.image))
        return _Facts(header, is_flat=is_flat, has_pages=has_pages)

    def look_at_both(sample: Sample) -> _Facts:
        facts = look(sample)
        mask = sample.mask
        assert mask is not None
        content = _content(mask, memory)
        coding = coding_of(sample, dataset.coding)
        swapped = coding.orientation == "stored" and facts.header.orientation in (5, 6, 7, 8)
        check_sizes(sample, facts.size, content.size[::-1] if swapped else content.size, coding)
        overlap = memory.recall(mask, "overlap", lambda: overlap_of(mask)) if drawn else 0
        return replace(facts, content=content, overlap=overlap)

    def count() -> None:
        on_image(next(numbers), total)

    try:
        labeled, broken = _inspect(look_at_both, dataset.labeled, count)
        val, broken_val = _inspect(look_at_both, dataset.val, count)
        unlabeled, broken_unlabeled = _inspect(look, dataset.unlabeled, count)
    finally:  # a check that was interrupted goes on from here the next time
        memory.keep()
    skipped = [error for error in broken + broken_unlabeled if _is_skipped(error, config)]
    if errors := [error for error in broken + broken_val + broken_unlabeled if error not in skipped]:
        raise UserError(f"{errors[0]} (and {len(errors) - 1} more)" if errors[1:] else str(errors[0]))
    if not labeled or (dataset.unlabeled and not unlabeled):
        raise UserError(f"{skipped[0]}; no other image of its list can be read either")
    _check_crop([facts.size for facts in [*labeled.values(), *unlabeled.values()]], config)
    masked, settable = labeled | val, hasattr(config, "values")
    contents = _contents(masked, indexed=False)
    meaning = explain(contents, dataset.coding, dataset.classes.names, settable)
    explain(_contents(masked, indexed=True), MaskCoding(len(dataset.classes)), dataset.classes.names, settable=False)
    parts = {
        "labeled": _part(labeled, dataset),
        "unlabeled": _part(unlabeled, dataset),
        "validation": _part(val, dataset),
    }
    _check_classes(parts, dataset, config)
    notes = [
        *dataset.notes,
        *meaning.notes,
        *_class_notes(parts, dataset, labeled),
        *([] if drawn else _empty_notes(labeled, dataset)),
        *_overlap_notes(labeled | val, config),
        *_orientation_notes(labeled | val, dataset),
        *_depth_notes(labeled | val | unlabeled, config),
        *_twins(dataset),
        *_same_masks(labeled | val),
        *_flat_notes(labeled | val | unlabeled),
        *_page_notes(labeled | val | unlabeled),
    ]
    if skipped:
        notes.append(f"Images that cannot be read and are skipped: {len(skipped)}, e.g. {skipped[0]}.")
    if not dataset.unlabeled:
        notes.append("There are no unlabeled images: only supervised training is possible.")
    kinds = Counter("drawn from annotations" if drawn else content.kind for content in contents.values())
    return Report(parts, meaning, dict(kinds), dataset.unused, tuple(notes))


def _is_skipped(error: UserError, config: DataConfig) -> bool:
    return config.on_unreadable == "skip" and isinstance(error, UnreadableError)


def _inspect(
    read: Callable[[Sample], T], samples: Sequence[Sample], count: Callable[[], None]
) -> tuple[dict[Sample, T], list[UserError]]:
    """Calls `read` on each sample, in threads (decoding releases the GIL), and `count` after each.

    Returns the results and the errors.
    """

    def attempt(sample: Sample) -> T | UserError:
        try:
            return read(sample)
        except UserError as error:
            return error

    found: dict[Sample, T] = {}
    errors: list[UserError] = []
    with ThreadPoolExecutor() as threads:
        for sample, result in zip(samples, threads.map(attempt, samples), strict=True):
            if isinstance(result, UserError):
                errors.append(result)
            else:
                found[sample] = result
            count()
    return found, errors


def _contents(masked: Mapping[Sample, _Facts], indexed: bool) -> dict[Path, Content]:
    """Returns what the masks of the layout store, or those that hold class indices: added and predicted ones."""
    return {
        sample.mask: facts.content
        for sample, facts in masked.items()
        if sample.mask is not None and facts.content is not None and (sample.pseudo or sample.indexed) == indexed
    }


def _part(found: Mapping[Sample, _Facts], dataset: Dataset) -> Part:
    pixels: Counter[int] = Counter()
    masks: Counter[int] = Counter()
    for sample, facts in found.items():
        if facts.content is not None:
            counts = class_pixels(facts.content, coding_of(sample, dataset.coding))
            pixels.update(counts)
            masks.update(counts.keys())
    sizes = sorted((facts.size for facts in found.values()), key=lambda size: (size[0] * size[1], size))
    return Part(len(found), (sizes[0], sizes[-1]) if sizes else None, dict(pixels), dict(masks))


def _check_classes(parts: Mapping[str, Part], dataset: Dataset, config: DataConfig) -> None:
    """Raises a UserError if there is nothing to learn or nothing to measure: masks show one class only, or none."""
    present = sorted(parts["labeled"].masks.keys() - {IGNORE})
    first, names = dataset.labeled[0].mask, dataset.classes.names
    settable = hasattr(config, "values") and IGNORE not in (dataset.coding.values or {})
    if len(present) == 1 and IGNORE in parts["labeled"].masks and settable:
        pixels = parts["labeled"].pixels
        share = percent(pixels[IGNORE], sum(pixels.values()))
        what = f"hold only {names[present[0]]} ({present[0]}) and {IGNORE} ({share})"
        index = next(i for i in range(len(names)) if i not in present)
        inverted = f", or '{{0: 1, {IGNORE}: 0}}' if 0 is {names[1]}" if len(names) == 2 and index == 1 else ""
        raise UserError(
            f"data.values: the labeled masks, e.g. {first}, {what}, which means 'ignored'; if {IGNORE} is a class, "
            f"e.g. {names[index]}, set data.values='{{{IGNORE}: {index}}}'{inverted}"
        )
    if not present:
        raise UserError(f"data.labeled: every labeled mask, e.g. {first}, is {IGNORE} (ignored) everywhere")
    if len(present) == 1:
        raise UserError(
            f"data.labeled: every labeled mask, e.g. {first}, shows only {names[present[0]]} (class {present[0]}): "
            "there is nothing to tell apart; label images that show other classes, too"
        )
    if not parts["validation"].masks.keys() - {IGNORE}:
        raise UserError(
            f"data.val: every validation mask, e.g. {dataset.val[0].mask}, is {IGNORE} (ignored) everywhere: "
            "there is nothing to measure; name images whose masks show classes"
        )


def _class_notes(parts: Mapping[str, Part], dataset: Dataset, labeled: Mapping[Sample, _Facts]) -> list[str]:
    names, found = dataset.classes.names, []
    absent = [name for index, name in enumerate(names) if index not in parts["labeled"].masks]
    if absent:
        found.append(f"No labeled mask shows {listed(absent, _SHOWN)}: training cannot learn what no mask shows.")
    total = sum(parts["labeled"].pixels.values())
    hardly = [
        f"{names[index]} ({pixels} px)"
        for index, pixels in sorted(parts["labeled"].pixels.items())
        if index != IGNORE and pixels < _HARDLY * total
    ]
    if hardly:
        found.append(
            f"Classes with hardly a labeled pixel: {', '.join(hardly)}; label more of them, or expect them to be lost."
        )
    plain = [folded(" ".join(name.split())) for name in names]
    if alike := [name for name, one in zip(names, plain, strict=True) if plain.count(one) > 1]:
        found.append(f"Classes whose names differ in case or spaces only: {', '.join(map(repr, alike[:_SHOWN]))}.")
    ignored = [
        sample.mask
        for sample, facts in labeled.items()
        if facts.content is not None
        and class_pixels(facts.content, coding_of(sample, dataset.coding)).keys() == {IGNORE}
    ]
    if ignored:
        found.append(f"Labeled masks that are ignored ({IGNORE}) everywhere: {len(ignored)}, e.g. {ignored[0]}.")
    measured = sorted(parts["validation"].masks.keys() - {IGNORE})
    if len(measured) == 1:
        found.append(
            f"The validation masks show only {names[measured[0]]}: their mIoU says little; validate on images that "
            "show the other classes, too (data.val)."
        )
    elif gone := [names[index] for index in sorted(parts["labeled"].masks.keys() - {IGNORE, *measured})]:
        found.append(
            f"Classes that labeled masks show and no validation mask: {listed(gone, _SHOWN)}; they are not "
            "measured, and one that a network predicts anywhere counts as 0 in the mIoU."
        )
    return found


def _empty_notes(labeled: Mapping[Sample, _Facts], dataset: Dataset) -> list[str]:
    """Notes masks of background alone: programs write them for images that nobody has labeled, too."""
    names, background = dataset.classes.names, dataset.classes.background
    nothing = {index for index, name in enumerate(names) if index == background or folded(name) == "background"}
    counts = {
        sample.mask: class_pixels(facts.content, dataset.coding)
        for sample, facts in labeled.items()
        if facts.content is not None and not sample.pseudo and not sample.indexed
    }
    empty = [mask for mask, pixels in counts.items() if len(pixels) == 1 and nothing.issuperset(pixels)]
    if not empty:
        return []
    return [
        f"Labeled masks that show background alone: {len(empty)} of {len(labeled)}, e.g. {empty[0]}; if nobody has "
        "labeled these images yet, remove their masks: then they are unlabeled."
    ]


def _overlap_notes(masked: Mapping[Sample, _Facts], config: DataConfig) -> list[str]:
    overlaps = {sample.image: facts.overlap for sample, facts in masked.items() if facts.overlap}
    if not overlaps:
        return []
    most = max(overlaps, key=lambda image: overlaps[image])
    crowds = ", and crowds below all others" if config.layout == "coco" else ""
    return [
        f"Objects of different classes overlap in {len(overlaps)} of {len(masked)} images, e.g. {most} "
        f"({overlaps[most]} px); the one that stands later in the file lies above{crowds}."
    ]


def _orientation_notes(masked: Mapping[Sample, _Facts], dataset: Dataset) -> list[str]:
    """Notes photographs that EXIF turns, unless sizes of masks show that these are drawn on turned photographs."""
    if dataset.coding.orientation is not None:
        return []
    turned = {sample: facts for sample, facts in masked.items() if facts.header.orientation != 1}
    if any(facts.header.orientation > 4 and facts.size[0] != facts.size[1] for facts in turned.values()):
        return []  # these masks fit turned photographs only
    if not turned:
        return []
    orientations = ", ".join(map(str, sorted({facts.header.orientation for facts in turned.values()})))
    return [
        f"Labeled photographs that are turned as EXIF says (orientation {orientations}), while their masks are not: "
        f"{len(turned)}, e.g. {next(iter(turned)).image}; set data.mask_orientation=upright if the masks were drawn "
        "on turned photographs, =stored if they were drawn on the stored pixels."
    ]


def _depth_notes(found: Mapping[Sample, _Facts], config: DataConfig) -> list[str]:
    """Notes photographs that use a small part of the values that their files can hold."""
    deep = {sample.image: facts.header for sample, facts in found.items() if facts.header.largest > 255}
    if not deep or config.white is not None or (proposed := proposed_white(deep)) is None:
        return []
    white, top, looked_at = proposed
    return [
        f"Photographs of more than 8 bits: {len(deep)}, e.g. {next(iter(deep))}; the largest value is {top} of 65535 "
        f"(in {looked_at} of them), so they are read as dark; set data.white={white} to make that value white."
    ]


def proposed_white(photographs: Mapping[Path, Header]) -> tuple[int, int, int] | None:
    """Proposes `data.white` for photographs of more than 8 bits that use a small part of the possible values.

    Returns:
        The proposal, the largest value that was found, and the number of photographs that were decoded for it; None if
        one of them uses more than half of the values, or cannot be read.
    """
    looked_at = list(photographs)[:: -(-len(photographs) // _DEEP)]
    try:
        largest = {path: largest_value(path) for path in looked_at}
    except UserError:
        return None  # it is reported as unreadable, or skipped
    if not largest or any(value > photographs[path].largest // 2 for path, value in largest.items()):
        return None
    top = max(largest.values())
    return next((level for level in (1023, 4095, 16383) if level >= top), top), top, len(looked_at)


def _twins(dataset: Dataset) -> list[str]:
    """Notes files with the same bytes in validation and training. Only files of one size are compared."""
    by_length: dict[int, list[tuple[Path, bool]]] = defaultdict(list)
    for samples, is_val in ((dataset.val, True), (dataset.labeled, False), (dataset.unlabeled, False)):
        for sample in samples:
            if sample.image.is_file():
                by_length[sample.image.stat().st_size].append((sample.image, is_val))
    pairs: list[tuple[Path, Path]] = []
    for files in by_length.values():
        if {is_val for _, is_val in files} == {True, False}:
            first: dict[str, Path] = {}
            for path, is_val in files:  # validation comes first
                digest = _digest(path)
                if is_val:
                    first.setdefault(digest, path)
                elif digest in first:
                    pairs.append((path, first[digest]))
    if not pairs:
        return []
    return [
        f"Training photographs that are validation photographs, too, byte for byte: {len(pairs)}, e.g. "
        f"{pairs[0][0]} and {pairs[0][1]}; the score will be too good; remove one of each pair."
    ]


def _same_masks(masked: Mapping[Sample, _Facts]) -> list[str]:
    """Notes masks with the same bytes beside different photographs, if they show more than one value."""
    by_counts: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample, facts in masked.items():
        if facts.content is not None and len(facts.content.counts) > 1 and not sample.pseudo:
            by_counts[tuple(facts.content.counts.items())].append(sample)
    alike: dict[str, list[Sample]] = defaultdict(list)
    for sample in itertools.chain(*(samples for samples in by_counts.values() if samples[1:])):
        assert sample.mask is not None
        alike[_digest(sample.mask)].append(sample)
    same = [samples for samples in alike.values() if samples[1:]]
    if not same:
        return []
    one, other = same[0][:2]
    return [
        f"Photographs whose masks are the same, byte for byte: {sum(map(len, same))}, e.g. {one.image} and "
        f"{other.image}; are they the same photograph, or is a mask in the wrong place?"
    ]


def has_few_colors(image: UInt8[Tensor, "3 h w"]) -> bool:
    """Returns whether an image has few colors, as masks have; photographs have many. It looks at some pixels only."""
    pixels = image.flatten(1)
    some = pixels[:, :: -(-pixels.shape[1] // _LOOKED_AT)]
    return 2 <= torch.unique(some, dim=1).shape[1] <= FEW


def _flat_notes(found: Mapping[Sample, _Facts]) -> list[str]:
    flat = [sample.image for sample, facts in found.items() if facts.is_flat]
    if not flat:
        return []
    return [
        f"Photographs of {FEW} colors or less, as masks have them: {len(flat)}, e.g. {flat[0]}; if they are "
        "masks, move them out of the folder of photographs (data.images), or set data.mask_suffix."
    ]


def _page_notes(found: Mapping[Sample, _Facts]) -> list[str]:
    paged = [sample.image for sample, facts in found.items() if facts.has_pages]
    if not paged:
        return []
    return [
        f"Photographs with several pages or frames: {len(paged)}, e.g. {paged[0]}; the first one alone is used; if "
        "they are channels, save them as one RGB image, and if they are photographs, as files of their own."
    ]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def count_classes(dataset: Dataset, root: Path) -> tuple[dict[int, int], ...]:
    """Counts the pixels of each class in each labeled mask. Masks that were checked before are not decoded again."""
    memory = Memory(root)

    def count(sample: Sample) -> dict[int, int]:
        assert sample.mask is not None
        return class_pixels(_content(sample.mask, memory), coding_of(sample, dataset.coding))

    with ThreadPoolExecutor() as threads:
        return tuple(threads.map(count, dataset.labeled))


def digests_of_masks(
    dataset: Dataset, root: Path, on_mask: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, dict[str, str]]:
    """Identifies what each mask of a dataset shows: name of the sample -> digests of its class counts and its pixels.

    A digest is `<size and number of pixels of each class>-<class of each pixel>`; an earlier semiseg had the first part
    alone. Masks that were read before are not decoded again. Masks that cannot be read are left out.

    Args:
        dataset: the dataset.
        root: its folder.
        on_mask: called with the number of masks that are done and the number of all masks.

    Returns:
        `labels` of labeled and validation images, and `pseudo` for predicted ones.
    """
    memory = Memory(root)

    def digest(sample: Sample) -> str:
        mask = sample.mask
        assert mask is not None
        content = _content(mask, memory)
        classes = read_as(content, coding_of(sample, dataset.coding)).classes
        pixels: Counter[object] = Counter()
        for key, index in classes.items():
            pixels[key if index is None else index] += content.counts[key]
        counted = _short_digest(repr((content.size, sorted(pixels.items(), key=repr))).encode())
        meaning = {key: index for key, index in classes.items() if index is not None}
        if len(meaning) < len(classes):  # such masks are refused elsewhere
            return counted
        what = f"pixels {_short_digest(repr(sorted(meaning.items(), key=repr)).encode())}"
        shown = memory.recall(mask, what, lambda: _short_digest(read_stored(mask).classes(meaning).numpy().tobytes()))
        return f"{counted}-{shown}"

    samples, numbers = dataset.labeled + dataset.val, itertools.count(1)
    found, _ = _inspect(digest, samples, lambda: on_mask(next(numbers), len(samples)))
    memory.keep()
    return {
        kind: {sample.name: digest for sample, digest in found.items() if sample.pseudo == is_pseudo}
        for kind, is_pseudo in (("labels", False), ("pseudo", True))
    }


def _short_digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _content(mask: Path, memory: Memory) -> Content:
    return Content.from_plain(memory.recall(mask, "mask", lambda: read_stored(mask).content.plain()))


def shares_of_classes(report: Report, names: Sequence[str]) -> str:
    """Writes the share of each class in the labeled pixels, the largest first, e.g. `ground 81.2 %, disc 18.8 %`."""
    pixels = report.parts["labeled"].pixels
    total = sum(pixels.values())
    ranked = sorted(pixels, key=lambda index: (index == IGNORE, -pixels[index]))
    parts = [f"{'ignored' if index == IGNORE else names[index]} {percent(pixels[index], total)}" for index in ranked]
    return listed(parts, 8)


def _check_crop(sizes: list[Size], config: DataConfig) -> None:
    """Raises a UserError if no image fills a crop even at the largest scale: every crop would be padded."""
    crop = config.crop_size
    at_most = [tuple(round(side * config.scale[1]) for side in fit(*size, config.long_side)) for size in sizes]
    height, width = max(at_most, key=lambda size: min(size[0] / crop[0], size[1] / crop[1]))
    if height < crop[0] or width < crop[1]:
        fits = [min(crop[0], height), min(crop[1], width)]
        remedy = f"use {min(fits)} or less" if isinstance(config.crop, int) else f"use {fits} or less"
        raise UserError(
            f"data.crop: {config.crop} is larger than every image at the largest scale, {config.scale[1]}; {remedy}"
        )
