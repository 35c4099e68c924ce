"""The studies of the small protocol: what was compared with what, each by a name, so that anyone can repeat them.

    python benchmarks/studies.py                                    lists them, and how much of each is done
    python benchmarks/studies.py 10-methods-wbc --data ~/data --out runs/studies --at-once 2
    python benchmarks/studies.py 11-switches-wbc --data ~/data --out runs/studies --devices 0,0,0,0,0,0 --minutes 8

`--data` is the folder with the packs. Rows and seeds that are in docs/results already are not trained again; new ones
are added to it when they are complete, also when the time is over. The same command goes on.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import comparisons
from rich.console import Console

from semiseg import compare as comparing
from semiseg import data
from semiseg.compare import Entry
from semiseg.methods import names
from semiseg.recipe.load import load_recipe
from semiseg.report import comparison_files
from semiseg.report.comparison import Comparison

# FixMatch with an EMA teacher, whose unlabeled weight rises over the whole run
PLAIN = "fixmatch:teacher=ema:ema_decay=0.99:threshold=0.9:ramp=1.0:strong=jitter"
# iMAS on one strong view with the same settings; `OFF` switches the three adaptations off, which is PLAIN
VIEW = "imas_views:views=1:ema_decay=0.99:threshold=0.9:ramp=1.0"
OFF = {"loss": "standard", "intensity": "standard", "pairs": "standard"}
# Their teachers are made for long runs; in a short one they would lag behind
_FASTER_TEACHER = ("augseg", "eln", "ps_mt", "unimatch_v2")
# ELN's own localizer, ResNet-34, would take most of the time of a small recipe; this is the network of these recipes
_SMALL_LOCALIZER = (
    "method.localizer.encoder=tu-tf_efficientnet_lite0:method.localizer.weights=lite"
    ":method.localizer.options.encoder_depth=4:method.localizer.options.decoder_channels=64"
)
_EXCEPTIONS = (
    "The EMA of teachers that are made for long runs is 0.99, ELN's localizer the network of the recipe, and each of "
    "the three stages of ST++ takes all of the steps. "
)
_JITTER = "method.labeled=jitter"
_APART = ":ramp=1.0:batch_norm=apart"
_WEIGHTS = "labeled_loss.class_weights=inverse_sqrt"
_PEER = "unimatch_v2:ema_decay=0.99:ramp=1.0"  # the strongest peer, with the settings that helped the others
RISING, FULL = "weight 1 that rises over the whole run", "weight 3 from the first step on, as in the paper"
_SGD = "optim.kind=sgd:optim.lr=0.01:optim.weight_decay=1e-4"  # as in the sections before 10
_STAGES = ("st_pp",)  # they learn stored pseudo-labels, like labels, so they have neither a ramp nor a batch norm apart
ALL = 0  # labels of all images of training


@dataclass(frozen=True)
class Images:
    """The images of a row that has its own.

    Attributes:
        labels: number of labels of the pack's list; ALL for those of all images; None for the recipe's list.
        unlabeled: share of the other images that is used; the first ones of their list.
    """

    labels: int | None = None
    unlabeled: float = 1.0


@dataclass(frozen=True)
class Study:
    """Methods and settings that are compared on one pack.

    Attributes:
        title: of the section in docs/results.md.
        text: what was asked.
        pack: name of the pack and of its recipe `small/<pack>`.
        rows: methods as `semiseg compare --methods` takes them; gains are differences to the first one.
        settings: for all of them.
        seeds: each row is trained once with each.
        images: by row, which images it is trained with. Empty: those of the recipe.
    """

    title: str
    text: str
    pack: str
    rows: tuple[str, ...]
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = field(default=(0, 1, 2))
    images: Mapping[str, "Images"] = field(default_factory=dict)

    @property
    def entries(self) -> list[Entry]:
        """Returns the rows as `semiseg.compare` takes them."""
        return comparing.entries(",".join(self.rows))

    def missing(self, known: Comparison | None) -> Iterator[tuple[list[Entry], list[int]]]:
        """Yields rows and seeds that are not in a comparison, those of the first seeds first."""
        found = {row.name: set(row.results) for row in known.rows} if known else {}
        groups: dict[tuple[str, ...], tuple[list[Entry], list[int]]] = {}
        for seed in self.seeds:
            left = [entry for entry in self.entries if seed not in found.get(entry.name, ())]
            if left:
                groups.setdefault(tuple(entry.name for entry in left), (left, []))[1].append(seed)
        yield from groups.values()


def _methods(settings: str = "") -> list[str]:
    """Returns a row for every semi-supervised method, with these settings if it has them."""
    rows = []
    for name in [name for name in names() if name != "supervised"]:
        faster = ":ema_decay=0.99" * (name in _FASTER_TEACHER)
        localizer = f":{_SMALL_LOCALIZER}" * (name == "eln")
        rows.append(f"{name}={name}{faster}{localizer}{settings * (name not in _STAGES)}")
    return rows


def methods_study(pack: str, title: str, settings: tuple[str, ...] = (), text: str = "") -> Study:
    """Makes the study of every method on a pack."""
    ramped = ("plain+ramp=" + PLAIN, "imas_views+ramp=imas_views:ema_decay=0.99:threshold=0.9:ramp=1.0")
    asked = (
        f"Recipe `small/{pack}`, every method with its own defaults. {_EXCEPTIONS}{text}*plain+ramp*: FixMatch with an "
        "EMA teacher, whose unlabeled weight rises over the whole run; *imas_views+ramp* likewise."
    )
    return Study(f"{title}: every method", asked, pack, ("supervised", *_methods(), *ramped), settings)


def ramps_study(pack: str, title: str, settings: tuple[str, ...] = (), text: str = "") -> Study:
    """Makes the study of every method whose unlabeled weight rises over the whole run."""
    rows = _methods(":ramp=1.0")
    asked = (
        f"Recipe `small/{pack}`, every method with its own defaults but for `ramp: 1.0`: its unlabeled weight rises "
        f"over the whole run. {_EXCEPTIONS}{text}Compare with the section of every method with its own weight."
    )
    return Study(f"{title}: every method, with a weight that rises", asked, pack, ("supervised", *rows), settings)


def apart_study(
    pack: str, title: str, settings: tuple[str, ...] = (), text: str = "", others: tuple[str, ...] = ()
) -> Study:
    """Makes the study of every method with batch norm apart and a weight that rises over the whole run."""
    rows = [*_methods(_APART), *others]
    asked = (
        f"Recipe `small/{pack}`, every method with its own defaults but for `ramp: 1.0` (its unlabeled weight rises "
        "over the whole run) and `batch_norm: apart` (labeled and unlabeled images are normalized by their own "
        f"statistics). {_EXCEPTIONS}{text}"
    )
    return Study(f"{title}: every method, batch norm apart", asked, pack, ("supervised", *rows), settings)


def switches_study(pack: str, title: str, settings: tuple[str, ...], text: str) -> Study:
    """Makes the study of one switch at a time: each row differs from the first, *plain*, in one setting."""
    apart, off = ":batch_norm=apart", "".join(f":{key}={value}" for key, value in OFF.items())
    other = "null" if _JITTER in settings else "jitter"
    plain, one, two = (each + apart for each in (PLAIN, VIEW + off, VIEW.replace("views=1", "views=2") + off))
    rows = [
        f"plain={plain}",
        "supervised",
        "supervised+class-balanced=supervised:data.labeled_order=class_balanced",
        f"batch norm joint={PLAIN}",
        *(f"weight {value}={plain}:unlabeled_weight={value}" for value in (0.5, 3)),
        *(f"ramp {value}={plain}:ramp={value}" for value in (0, 0.3)),
        *(f"threshold {value}={plain}:threshold={value}" for value in (0, 0.7, 0.95)),
        f"encoder 0.1={plain}:optim.lr=2.5e-4:optim.head_lr_factor=10",
        f"encoder 0.025={plain}:optim.lr=6.25e-5:optim.head_lr_factor=40",
        f"SGD={plain}:{_SGD}",
        *(f"EMA {value}={plain}:ema_decay={value}" for value in (0.9, 0.98, 0.996)),
        *(f"CutMix {value}={plain}:cutmix_probability={value}" for value in (0, 1)),
        f"class-balanced={plain}:data.labeled_order=class_balanced",
        *(f"strong {pool}={plain}:strong={pool}" for pool in ("mild", "intensity")),
        *(f"labeled {pool}={plain}:labeled={pool}" for pool in ("mild", "intensity", other)),
        f"two views={two}:feature_dropout=none",
        f"two views+dropout={two}",
        f"paste={one}:paste={{}}",
        f"alignment={one}:alignment=0.7",
        f"class-wise thresholds=ael:ema_decay=0.99:ramp=1.0{apart}",
    ]
    asked = (
        f"Recipe `small/{pack}`. *plain* is FixMatch with an EMA teacher (0.99): jitter, gray and blur, CutMix with "
        "probability 0.5, threshold 0.9, weight 1 that rises over the whole run, batch norm apart. "
        f"{text}Each other row differs in what its name says. *encoder*: its learning rate over that of the head, "
        "which is 0.2 in *plain*. *labeled*: the pool on labeled images. *class-wise thresholds*: AEL."
    )
    return Study(f"{title}: one switch at a time", asked, pack, tuple(rows), settings)


def adaptations_study(pack: str, title: str, settings: tuple[str, ...], text: str = "", weight: str = RISING) -> Study:
    """Makes the study of Table 5 of iMAS: each adaptation alone, all together, and none."""
    full = ":ramp=0:unlabeled_weight=3" if weight == FULL else ""

    def row(name: str, *on: str) -> str:
        values = "".join(f":{key}={'adaptive' if key in on else value}" for key, value in OFF.items())
        view = VIEW.replace(":ramp=1.0", full) if full else VIEW
        return f"{name}={view}:batch_norm=apart{values}"

    rows = (
        row("standard"), *(row(f"adaptive {key}", key) for key in OFF), row("all three", *OFF), "supervised"
    )  # fmt: skip
    asked = (
        f"Do the adaptations of iMAS pay? Table 5 in kind, recipe `small/{pack}`, one strong view (jitter, gray, blur)"
        f", {weight}, threshold 0.9, EMA 0.99, batch norm apart. {text}*standard* has none of them."
    )
    return Study(f"{title}: the adaptations of iMAS", asked, pack, rows, settings, (0, 1, 2, 3, 4))


def labels_study(pack: str, title: str, numbers: tuple[int, ...], settings: tuple[str, ...] = ()) -> Study:
    """Makes the study of what more labels would be worth."""
    images = {f"{number} labels": Images(number) for number in numbers} | {"all labels": Images(ALL)}
    asked = (
        f"Recipe `small/{pack}`, supervised training with its best augmentation, the same steps for each row. In a "
        "training of this length unlabeled images can hardly be worth more than their labels would be: *all labels*. "
        "(The short lists of tiles and VOC show each class about equally often, the list of all images does not.)"
    )
    return Study(
        f"{title}: what more labels would be worth", asked, pack, tuple(f"{row}=supervised" for row in images),
        settings, images=images,
    )  # fmt: skip


def optimizers_study(pack: str, title: str, settings: tuple[str, ...] = ()) -> Study:
    """Makes the study of optimizers and learning rates, in supervised training."""
    rows = (
        "AdamW 0.0005=supervised",
        f"SGD 0.01=supervised:{_SGD}",
        f"SGD 0.03=supervised:{_SGD.replace('0.01', '0.03')}",
        "AdamW 0.001=supervised:optim.lr=1e-3",
    )
    asked = f"Recipe `small/{pack}`, supervised training. The rate is that of the encoder, of the head five times it."
    return Study(f"{title}: optimizers", asked, pack, rows, settings)


def unlabeled_study(pack: str, title: str, settings: tuple[str, ...]) -> Study:
    """Makes the study of how many unlabeled images it takes."""
    images = {f"{share:.0%} unlabeled": Images(unlabeled=share) for share in (1.0, 0.25, 0.0625)}
    asked = (
        f"Recipe `small/{pack}`, *plain*: FixMatch with an EMA teacher (0.99), jitter, gray and blur, weight 1 that "
        "rises over the whole run. *25 % unlabeled*: a quarter of the unlabeled images, each four times as often."
    )
    rows = tuple(f"{row}={PLAIN}" for row in images)
    return Study(f"{title}: how many unlabeled images", asked, pack, rows, settings, images=images)


def balanced_study(pack: str, title: str, number: int, settings: tuple[str, ...] = ()) -> Study:
    """Makes the study of few and all labels, in both orders of labeled images."""
    few, every = f"{number} labels", "all labels"
    images = {few: Images(number), every: Images(ALL)}
    images |= {f"{row} class-balanced": of for row, of in images.items()}
    rows = (f"{row}=supervised" + (":data.labeled_order=class_balanced" if "balanced" in row else "") for row in images)
    asked = (
        f"Recipe `small/{pack}` with more steps, supervised training with its best augmentation. How far masks of all "
        "images are from the few ones bounds what unlabeled images can be worth. *class-balanced*: each turn draws a "
        "class, rare ones more often, and then an image that shows it."
    )
    return Study(f"{title}: few labels and all", asked, pack, tuple(rows), settings, images=images)


def long_study(pack: str, title: str, settings: tuple[str, ...]) -> Study:
    """Makes the study of a longer training."""
    rows = (
        "supervised",
        f"plain+ramp={PLAIN}",
        f"plain+2 views+ramp={VIEW.replace('views=1', 'views=2')}"
        + "".join(f":{key}={value}" for key, value in OFF.items()) + ":feature_dropout=none",
        "cac",
        "unimatch_v2+ramp=unimatch_v2:ema_decay=0.99:ramp=1.0",
        "imas+ramp=imas:ramp=1.0",
    )  # fmt: skip
    asked = f"Recipe `small/{pack}` with more steps. *+ramp*: the unlabeled weight rises over the whole run."
    return Study(f"{title}: a longer training", asked, pack, rows, settings)


def weights_study(
    pack: str, title: str, settings: tuple[str, ...] = (), peer: str = "", others: tuple[str, ...] = ()
) -> Study:
    """Makes the study of class weights and of batch norm."""
    weights = f":method.{_WEIGHTS}"
    apart = ":batch_norm=apart"
    rows = ("supervised", f"supervised+weights=supervised{weights}", f"plain+ramp={PLAIN}",
            f"plain+ramp+weights={PLAIN}{weights}", f"plain+ramp+weights+apart={PLAIN}{weights}{apart}",
            f"unimatch_v2+ramp{peer}={_PEER}" + weights * ("+weights" in peer) + apart * ("+apart" in peer),
            *others)  # fmt: skip
    asked = (
        f"Recipe `small/{pack}`. *+weights*: `labeled_loss.class_weights: inverse_sqrt`. *plain+ramp*: FixMatch with "
        "an EMA teacher, whose unlabeled weight rises over the whole run. *+apart*: `batch_norm: apart`. "
        "*unimatch_v2+ramp*: UniMatch V2 with EMA 0.99 and what helped FixMatch; its step has 1.4 times the passes."
    )
    return Study(f"{title}: class weights and batch norm", asked, pack, rows, settings)


_BINARY = ("data.classes=classes-binary.txt", "data.background=background",
           "data.values={1: 1, 2: 1, 3: 1, 4: 1, 5: 1}")  # fmt: skip
_GROUPS = (  # VOC's own groups of its classes
    "data.layout=folder", "data.images=JPEGImages", "data.masks=SegmentationClass", "data.background=background",
    f"data.classes={Path(__file__).parent / 'voc-groups.txt'}",
    "data.values={15: 1, 3: 2, 8: 2, 10: 2, 12: 2, 13: 2, 17: 2, 1: 3, 2: 3, 4: 3, 6: 3, 7: 3, 14: 3, 19: 3, 5: 4, 9: 4"
    ", 11: 4, 16: 4, 18: 4, 20: 4}",
)  # fmt: skip
_LONG = "engine.steps=2000", "engine.eval_every=250"
_3000 = "engine.steps=3000", "engine.eval_every=500"
_CELLS, _CAMVID = "White blood cells, 5 labels", "CamVid, 23 labels"
_TILES, _VOC = "Magnetic tile defects, 24 labels", "Small VOC photographs, 83 labels"

STUDIES: dict[str, Study] = {
    "10-methods-wbc": methods_study("wbc", _CELLS, (_JITTER,), "Labeled images are jittered, too. "),
    "10-methods-camvid": methods_study("camvid", _CAMVID),
    "10-methods-tile": methods_study("tile", _TILES),
    "10-methods-voc-mini": methods_study("voc-mini", _VOC),
    "13-ramps-wbc": ramps_study("wbc", _CELLS, (_JITTER,), "Labeled images are jittered, too. "),
    "13-ramps-camvid": ramps_study("camvid", _CAMVID),
    "13-ramps-tile": ramps_study("tile", _TILES),
    "13-ramps-voc-mini": ramps_study("voc-mini", _VOC),
    "11-adaptations-wbc": adaptations_study("wbc", _CELLS, (_JITTER,), "Labeled images are jittered, too. "),
    "11-adaptations-camvid": adaptations_study(
        "camvid", _CAMVID, (f"method.{_WEIGHTS}",), "All rows have `labeled_loss.class_weights: inverse_sqrt`. "
    ),
    "11-adaptations-wbc-full-weight": adaptations_study(
        "wbc", f"{_CELLS}, full weight", (_JITTER,), "Labeled images are jittered, too. ", FULL
    ),
    "14-labels-wbc": labels_study("wbc", "White blood cells", (5, 10), (_JITTER,)),
    "14-labels-camvid": labels_study("camvid", "CamVid", (23, 46, 92, 184)),
    "14-labels-camvid-long": labels_study("camvid", "CamVid, 3000 steps", (23, 46, 92, 184), ("engine.steps=3000",)),
    "14-labels-tile": labels_study("tile", "Magnetic tile defects", (24, 48, 96)),
    "14-labels-voc-mini": labels_study("voc-mini", "Small VOC photographs", (83, 166, 332)),
    "17-few-and-all-wbc": balanced_study("wbc", "White blood cells, 3000 steps", 5, (_JITTER, *_3000)),
    "17-few-and-all-camvid": balanced_study("camvid", "CamVid, 3000 steps", 23, _3000),
    "17-few-and-all-tile": balanced_study("tile", "Magnetic tile defects, 3000 steps", 24, _3000),
    "17-few-and-all-voc-mini": balanced_study("voc-mini", "Small VOC photographs, 3000 steps", 83, _3000),
    "18-long-wbc": long_study("wbc", f"{_CELLS}, 3000 steps", (_JITTER, *_3000)),
    "18-long-camvid": long_study("camvid", f"{_CAMVID}, 3000 steps", _3000),
    "18-long-tile": long_study("tile", f"{_TILES}, 3000 steps", _3000),
    "18-long-voc-mini": long_study("voc-mini", f"{_VOC}, 3000 steps", _3000),
    "19-weights-wbc": weights_study(
        "wbc",
        _CELLS,
        (_JITTER,),
        "+apart",
        (
            "cac",
            "cac+apart=cac:batch_norm=apart",
            f"plain+ramp+apart={PLAIN}:batch_norm=apart",
            "imas+ramp+apart=imas:ramp=1.0:batch_norm=apart",
            "supervised+weak=supervised:labeled=null",
        ),
    ),
    "19-weights-camvid": weights_study("camvid", _CAMVID, peer="+weights+apart"),
    "19-weights-tile": weights_study("tile", _TILES, peer="+weights"),
    "19-weights-voc-mini": weights_study("voc-mini", _VOC, peer="+weights"),
    "19-weights-tile-binary": weights_study(
        "tile", "Magnetic tiles, defect or not, 24 labels", _BINARY, peer="+weights"
    ),
    "19-weights-voc-groups": weights_study("voc-mini", "Small VOC photographs in 5 groups, 83 labels", _GROUPS),
    "20-apart-wbc": apart_study(
        "wbc",
        _CELLS,
        (_JITTER,),
        "Labeled images are jittered, too. *+averaged*: `teacher_statistics: averaged`. ",
        (f"mean_teacher+averaged=mean_teacher:teacher_statistics=averaged{_APART}",),
    ),
    "20-apart-camvid": apart_study("camvid", _CAMVID, (f"method.{_WEIGHTS}",), "All rows have class weights. "),
    "16-optimizers-wbc": optimizers_study("wbc", _CELLS, (_JITTER,)),
    "16-optimizers-camvid": optimizers_study("camvid", _CAMVID),
    "16-optimizers-tile": optimizers_study("tile", _TILES),
    "16-optimizers-voc-mini": optimizers_study("voc-mini", _VOC),
    "15-unlabeled-wbc": unlabeled_study("wbc", f"{_CELLS}, 2000 steps", (_JITTER, *_LONG)),
    "12-switches-wbc": switches_study("wbc", _CELLS, (_JITTER,), "Labeled images are jittered, too. "),
    "12-switches-camvid": switches_study("camvid", _CAMVID, (f"method.{_WEIGHTS}",), "All rows have class weights. "),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []], metavar="NAME")
    parser.add_argument("--data", type=Path, help="the folder with the packs")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--minutes", type=float, help="when to stop, over all studies")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--devices", default="", help="numbers of GPUs; one training at once on each, e.g. 0,0,0")
    found = parser.parse_args()
    if not found.names:
        for name, study in STUDIES.items():
            left = sum(len(entries) * len(seeds) for entries, seeds in study.missing(comparisons.stored(name)))
            print(f"{name}: {left} of {len(study.rows) * len(study.seeds)} runs are missing. {study.title}")
        return
    if found.data is None or found.out is None:
        parser.error("name the folder of the packs with --data, and one for the runs with --out")
    until = None if found.minutes is None else time.monotonic() + 60 * found.minutes
    devices = found.devices.split(",") if found.devices else ()
    for name in found.names:
        train(name, found.data.expanduser().absolute(), found.out, until, found.at_once, devices)


def train(
    name: str, packs: Path, out: Path, until: float | None = None, at_once: int = 1, devices: Sequence[str] = ()
) -> None:
    """Trains what is missing of a study, and adds what is complete to docs/results."""
    study, made = STUDIES[name], out / name / "comparison.json"
    settings = [f"data.root={packs / study.pack}", *study.settings]
    for entries, seeds in [*study.missing(comparisons.stored(name))]:
        minutes = None if until is None else (until - time.monotonic()) / 60
        if minutes is not None and minutes <= 0:
            return
        recipe = f"small/{study.pack}"
        try:
            if study.images:
                apart(study, entries, seeds, out / name, settings, until, at_once, devices)
            else:
                comparing.compare(recipe, entries, seeds, out / name, settings, Console(), minutes, at_once, devices)
        finally:  # also what was complete before a training failed
            if made.exists():
                comparisons.store(name, comparisons.read(made), study.title, study.text)
                comparisons.PAGE.write_text(comparisons.page(comparisons.FOLDER), encoding="utf-8")


def apart(
    study: Study,
    entries: list[Entry],
    seeds: list[int],
    out: Path,
    settings: list[str],
    until: float | None,
    at_once: int,
    devices: Sequence[str],
) -> None:
    """Trains rows with their own images, each in its own folder. Writes one comparison of those that are complete."""
    recipe, results = f"small/{study.pack}", []
    for entry in entries:
        minutes = None if until is None else (until - time.monotonic()) / 60
        if minutes is not None and minutes <= 0:
            return
        lists = image_lists(study, study.images[entry.name], out / entry.folder, settings)
        one = comparing.compare(
            recipe, [entry], seeds, out / entry.folder, [*settings, *lists], Console(), minutes, at_once, devices
        )
        results.append((entry.name, one))
        found = comparisons.joined(results, entries[0].name)
        protocol = found.protocol | dict.fromkeys(("labeled images", "unlabeled images"), comparisons.NAMED)
        comparison_files.write(replace(found, protocol=protocol), out)  # after each: the next one may fail


def image_lists(study: Study, images: Images, out: Path, settings: list[str]) -> list[str]:
    """Writes the lists of a row's images. Returns the settings that name them."""
    if images.labels:  # not ALL, not None
        settings = [*settings, *(f"data.{kind}=splits/{kind}_{images.labels}.txt" for kind in ("labeled", "unlabeled"))]
    dataset = data.load(load_recipe(Path(f"small/{study.pack}"), settings).data)
    labeled, unlabeled = ([sample.name for sample in each] for each in (dataset.labeled, dataset.unlabeled))
    if images.labels == ALL:
        labeled, unlabeled = labeled + unlabeled, []
    unlabeled = unlabeled[: round(images.unlabeled * len(unlabeled))]
    out.mkdir(parents=True, exist_ok=True)
    named = []
    for kind, of_list in {"labeled": labeled, "unlabeled": unlabeled}.items():
        path = out / f"{kind}.txt"
        path.write_text("".join(f"{name}\n" for name in of_list), encoding="utf-8")
        named.append(f"data.{kind}={path.absolute() if of_list else 'null'}")
    return named


if __name__ == "__main__":
    main()
