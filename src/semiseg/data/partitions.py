"""Partitions, i.e. which images are labeled: recognizes published partitions and makes new ones.

Papers that report "1/16" labeled images did not all use the same images. A hash of the ids tells such partitions apart.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from semiseg.data.dataset import MaskCoding, Sample
from semiseg.data.masks import coding_of, read_mask
from semiseg.errors import UserError
from semiseg.rng import fold_in
from semiseg.types import IGNORE

_PUBLISHED = {
    "124b0aab2fcd": "VOC classic 92",
    "79b959bccf77": "VOC classic 183",
    "f0e702c687e2": "VOC classic 366",
    "8c23014f5128": "VOC classic 732",
    "1c27978cdf51": "VOC classic 732 (CPS, PS-MT)",
    "129f1fe99172": "VOC classic 1464",
    "baa85754594f": "VOC blended 662 (random, CPS)",
    "c9ca45b4e688": "VOC blended 1323 (random, CPS)",
    "fd0e8dca3dac": "VOC blended 2646 (random, CPS)",
    "5338f2777301": "VOC blended 5291 (random, CPS)",
    "feea46927383": "VOC blended 662 (priority, U2PL)",
    "23921931a213": "VOC blended 1323 (priority, U2PL)",
    "d35f7cd4b481": "VOC blended 2646 (priority, U2PL)",
    "aacb97f26e94": "VOC blended 5291 (priority, U2PL)",
    "70187bd5e194": "VOC blended 662 (ST++ split 0, CAC, GCT)",
    "0b996766ba8c": "VOC blended 662 (ST++ split 1, CAC, GCT)",
    "0ccdcc314066": "VOC blended 662 (ST++ split 2, CAC, GCT)",
    "fa19d836f741": "VOC blended 1323 (ST++, CAC, GCT)",
    "95017789320b": "VOC blended 1323 (ST++, CAC, GCT)",
    "882389cda211": "VOC blended 1323 (ST++, CAC, GCT)",
    "6e6a5460bb2e": "VOC blended 1323 (PixelSSL 0)",
    "f20f7c7dea9c": "Cityscapes 186 (U2PL)",
    "f13edf481be9": "Cityscapes 372 (U2PL)",
    "7d0cfd6f5390": "Cityscapes 744 (U2PL)",
    "c6122be0439b": "Cityscapes 1488 (U2PL)",
    "1e5363dd012c": "Cityscapes 186 (UniMatch)",
    "6b3b52bab110": "Cityscapes 372 (UniMatch)",
    "6856046a4415": "Cityscapes 744 (UniMatch)",
    "2b3183629a3a": "Cityscapes 1488 (UniMatch)",
}


def partition_hash(ids: Iterable[str]) -> str:
    """Identifies a set of images: the first 12 hex digits of the SHA-256 of the sorted ids, joined by newlines.

    Args:
        ids: names of samples as the layouts make them: `2007_000032`, `aachen_000000_000019`.

    Example:
        The order of a list changes nothing; a file extension does.

        >>> partition_hash(["2007_000032", "2007_000039"]), partition_hash(["2007_000039", "2007_000032"])
        ('f4963b6b0324', 'f4963b6b0324')
        >>> partition_hash(["2007_000032.jpg", "2007_000039.jpg"])
        'ef4c45293c18'
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:12]


def published_name(digest: str) -> str | None:
    """Returns the name of the published partition with this hash, or None if it is not known."""
    return _PUBLISHED.get(digest)


def class_presence(
    samples: Sequence[Sample],
    coding: MaskCoding,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, frozenset[int]]:
    """Finds the classes that the mask of each sample shows, by the sample's name. Masks are read in threads.

    Args:
        samples: images with masks.
        coding: the meaning of the masks.
        on_image: called with the number of masks that are done and the number of all masks.

    Raises:
        UserError: a mask cannot be read or holds a value that is no class.
    """

    def classes(sample: Sample) -> frozenset[int]:
        assert sample.mask is not None, f"{sample.name} is not labeled"
        return frozenset(torch.unique(read_mask(sample.mask, coding_of(sample, coding))).tolist()) - {IGNORE}

    found = {}
    with ThreadPoolExecutor() as threads:
        for done, (sample, present) in enumerate(zip(samples, threads.map(classes, samples), strict=True), 1):
            found[sample.name] = present
            on_image(done, len(samples))
    return found


def nested_partitions(
    samples: Sequence[Sample], class_sets: Mapping[str, frozenset[int]], counts: Sequence[int | float], seed: int
) -> dict[int, tuple[Sample, ...]]:
    """Makes labeled sets of several sizes. The larger ones contain the smaller ones.

    The pool is put into one random order, and each partition is the beginning of it. Images that together show all
    classes come first: the next one is always the image with the most missing classes. So even a small partition shows
    many classes.

    Args:
        samples: the pool to choose from; its order does not matter.
        class_sets: the classes that each sample shows, by its name.
        counts: the sizes. A number below 1 is a fraction of the pool, any other a number of images.
        seed: the random order depends on it.

    Returns:
        Size -> samples, sorted by name; sizes ascending.

    Raises:
        UserError: a size is not above 0, or is larger than the pool.
    """
    sizes = sorted({max(1, round(count * len(samples))) if 0 < count < 1 else int(count) for count in counts})
    if not all(1 <= size <= len(samples) for size in sizes):
        raise UserError(f"partition sizes {list(counts)} must lie between 1 and the {len(samples)} images of the pool")
    by_name = sorted(samples, key=lambda sample: sample.name)
    left = [by_name[i] for i in torch.randperm(len(by_name), generator=fold_in(seed, "partitions")).tolist()]
    missing = frozenset[int]().union(*(class_sets[sample.name] for sample in samples))
    first = []
    while missing:
        best = max(left, key=lambda sample: len(class_sets[sample.name] & missing))
        left.remove(best)
        first.append(best)
        missing -= class_sets[best.name]
    order = first + left
    return {size: tuple(sorted(order[:size], key=lambda sample: sample.name)) for size in sizes}


def class_folds(
    samples: Sequence[Sample], class_sets: Mapping[str, frozenset[int]], count: int, seed: int
) -> tuple[tuple[Sample, ...], ...]:
    """Splits samples into parts for cross-validation, each class over as many parts as rarer classes allow.

    Samples with rare classes are dealt first. Each goes to the part that shows its rarest class in the fewest samples;
    of several such parts its second rarest class decides, and so on, and at last the number of samples.

    Args:
        samples: the samples; their order does not matter.
        class_sets: the classes that each sample shows, by its name.
        count: number of parts; at most the number of samples.
        seed: samples whose classes are equally rare are dealt in a random order, which depends on it.

    Returns:
        The parts, each with at least one sample, sorted by name.
    """
    total = Counter(index for sample in samples for index in class_sets[sample.name])
    rarest_first = {
        sample.name: sorted(class_sets[sample.name], key=lambda index: (total[index], index)) for sample in samples
    }
    by_name = sorted(samples, key=lambda sample: sample.name)
    shuffled = [by_name[i] for i in torch.randperm(len(by_name), generator=fold_in(seed, "folds")).tolist()]
    folds: list[list[Sample]] = [[] for _ in range(count)]
    shown: list[Counter[int]] = [Counter() for _ in range(count)]
    for sample in sorted(shuffled, key=lambda sample: [total[index] for index in rarest_first[sample.name][:1]]):
        classes = rarest_first[sample.name]
        part = min(range(count), key=lambda k: (*(shown[k][index] for index in classes), len(folds[k])))
        folds[part].append(sample)
        shown[part].update(classes)
    return tuple(tuple(sorted(fold, key=lambda sample: sample.name)) for fold in folds)


def write_partitions(
    folder: Path, samples: Sequence[Sample], val: Sequence[Sample], partitions: Mapping[int, Sequence[Sample]]
) -> list[Path]:
    """Writes the lists of each partition: labeled_N.txt, unlabeled_N.txt if other training images are left, val.txt.

    A line names the mask beside the image if the list that the sample came from does.

    Args:
        folder: the folder to write to; it is made if it does not exist.
        samples: all training images, i.e. the pool that the partitions were drawn from and all unlabeled images.
        val: the validation images.
        partitions: the result of `nested_partitions`.

    Returns:
        The files written. A val.txt of the same images may exist already.

    Raises:
        UserError: one of the files exists; then none is written.
    """
    texts = {folder / "val.txt": lines_of(val)}
    for size, labeled in partitions.items():
        names = {sample.name for sample in labeled}
        texts[folder / f"labeled_{size}.txt"] = lines_of(labeled)
        if left := [sample for sample in samples if sample.name not in names]:
            texts[folder / f"unlabeled_{size}.txt"] = "".join(f"{name}\n" for name in sorted(one.name for one in left))
    for path, text in texts.items():
        if path.exists() and not (path.name == "val.txt" and path.read_text(encoding="utf-8") == text):
            raise UserError(f"{path}: exists already; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def lines_of(samples: Sequence[Sample]) -> str:
    """Returns the text of a list of labeled samples, sorted by name."""
    return "".join(f"{one.line or one.name}\n" for one in sorted(samples, key=lambda sample: sample.name))
