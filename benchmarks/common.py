"""Defines how benchmarks measure, and what a results file contains."""

import argparse
import ctypes
import gc
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from semiseg.engine import environment
from semiseg.errors import UserError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy", "pillow", "opencv-python-headless",
    "simplejpeg", "torchcodec",
)  # fmt: skip
PEERS = ("imas", "unimatch")
GrowthUnit = Literal["s", "images/s", "MB", "1"]


class Strict(BaseModel):
    """Plain values. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Strict):
    """A quantity that was measured `repeats` times."""

    name: str
    unit: Literal["s", "images/s", "MB", "FLOP", "FLOP/s", "million", "1"]
    median: float
    iqr: float  # interquartile range
    repeats: int


class Phase(Strict):
    """A part of a step. The parts of a step do not overlap."""

    name: str
    median: float  # s
    iqr: float  # s
    share: float  # of the sum over all phases


class Point(Strict):
    """The measurement at one size."""

    size: float
    median: float
    iqr: float


class Growth(Strict):
    """The growth of a cost, about as size ** exponent. Without an exponent: values that follow no such law."""

    name: str
    by: str  # what the size is, e.g. "px an image"
    unit: GrowthUnit
    points: list[Point]
    exponent: float | None


class Ratio(Strict):
    """One figure of a record divided by another."""

    name: str
    numerator: str
    denominator: str
    value: float


class Record(Strict):
    """A results file."""

    suite: str
    title: str
    date: str
    commit: str | None
    versions: dict[str, str]
    machine: dict[str, Any]
    others: float | None  # share of the cores' time that other processes used; None: it cannot be measured here
    device: str
    peers: dict[str, str | None]  # the commit of each checkout that was compared with
    settings: dict[str, str | int | float]
    figures: list[Figure]
    phases: list[Phase]
    growth: list[Growth]
    ratios: list[Ratio]
    notes: list[str]


@dataclass(frozen=True)
class Settings:
    """The settings of the command line.

    Attributes:
        device: where to compute.
        repeats: minimum number of repeats. None: each benchmark has its own number.
        machine: name of the machine in the name of the results file.
        peers: checkouts of other code, by name.
        data: folder with JPEGImages and SegmentationClass. None: scenes are drawn.
        tiny: whether to use very small sizes. This only shows that everything runs; the figures mean nothing.
        out: folder of the results file.
        seconds: time limit of a suite whose length can be chosen. None: not given.
        commit: commit of the code, if its folder is no checkout. None: ask git.
        brief: whether to leave out what takes long and matters least: growth by size, compiled networks.
    """

    device: torch.device
    repeats: int | None
    machine: str
    peers: dict[str, Path]
    data: Path | None
    tiny: bool
    out: Path
    seconds: float | None = None
    commit: str | None = None
    brief: bool = False

    def times(self, usual: int) -> int:
        """Returns how often to measure. `usual` is the benchmark's own number."""
        return self.repeats or (2 if self.tiny else usual)

    def size(self, cpu: Any, gpu: Any, tiny: Any) -> Any:
        """Returns the size for this device."""
        return tiny if self.tiny else gpu if self.device.type == "cuda" else cpu


class Results:
    """Collects the measurements of a benchmark and prints each of them."""

    def __init__(self, settings: Settings) -> None:
        self.run = settings
        self.begin = cpu_seconds()
        self.settings: dict[str, str | int | float] = {"threads": torch.get_num_threads()}
        self.figures: dict[str, Figure] = {}
        self.phases: list[Phase] = []
        self.growth: list[Growth] = []
        self.ratios: list[Ratio] = []
        self.notes: list[str] = []
        self.peers: dict[str, str | None] = {}

    def figure(self, name: str, unit: str, *values: float) -> float:
        """Adds a figure. Returns its median."""
        median, iqr = summary(values)
        self.figures[name] = Figure(name=name, unit=unit, median=median, iqr=iqr, repeats=len(values))  # type: ignore[arg-type]
        print(f"{name}: {shown(median, unit)} (IQR {shown(iqr, unit)}, {len(values)} times)", flush=True)
        return median

    def time(self, candidates: dict[str, Callable[[], Any]], usual: int, per: float = 1, warm_up: int = 2) -> None:
        """Measures the time of candidates in turns. `per` is the number of items that one call processes."""
        seconds = interleaved(candidates, self.run.times(usual), self.run.device, 1 if self.run.tiny else warm_up)
        for name, values in seconds.items():
            self.figure(name, "s", *(value / per for value in values))

    def grow(
        self, name: str, by: str, candidates: dict[float, Callable[[], Any]], usual: int, warm_up: int = 1
    ) -> None:
        """Measures the time at several sizes, in turns, and fits its growth."""
        runs = {str(size): run for size, run in candidates.items()}
        seconds = interleaved(runs, self.run.times(usual), self.run.device, warm_up)
        self.growth_of(name, by, "s", {size: seconds[str(size)] for size in candidates})

    def growth_of(
        self, name: str, by: str, unit: GrowthUnit, values: dict[float, list[float]], power_law: bool = True
    ) -> None:
        """Adds the growth of measured values. Without a power law it adds only the values."""
        points = [
            Point(size=size, median=median, iqr=iqr)
            for size, (median, iqr) in ((size, summary(found)) for size, found in values.items())
        ]
        exponent = slope([(point.size, point.median) for point in points]) if power_law else None
        self.growth.append(Growth(name=name, by=by, unit=unit, points=points, exponent=exponent))
        sizes = ", ".join(f"{point.size:g}: {shown(point.median, unit)}" for point in points)
        law = "" if exponent is None else f"; grows as size ** {exponent:.2f}"
        print(f"{name} by {by}: {sizes}{law}", flush=True)

    def ratio(self, name: str, numerator: str, denominator: str) -> None:
        """Adds a ratio of medians."""
        value = self.figures[numerator].median / self.figures[denominator].median
        self.ratios.append(Ratio(name=name, numerator=numerator, denominator=denominator, value=value))
        print(f"{name}: {value:.3g}", flush=True)

    def profile(self, rows: dict[str, list[float]]) -> None:
        """Adds the phases of a step, from the seconds of each phase in each repeat."""
        medians = {name: summary(values) for name, values in rows.items()}
        total = sum(median for median, _ in medians.values())
        for name, (median, iqr) in medians.items():
            self.phases.append(Phase(name=name, median=median, iqr=iqr, share=median / total))
            print(f"  {name}: {shown(median, 's')}, {median / total:.2%}", flush=True)

    def note(self, text: str) -> None:
        """Adds a note that a reader of the figures needs."""
        self.notes.append(text)

    def record(self, suite: str, title: str) -> Record:
        """Makes the record of all measurements, with versions, machine and settings."""
        run = self.run
        return Record(
            suite=suite,
            title=title,
            date=datetime.now(UTC).date().isoformat(),
            commit=run.commit or commit(),
            versions=versions(),
            machine=environment.machine(),
            others=share_of_others(self.begin, cpu_seconds()),
            device=str(run.device),
            peers=self.peers,
            settings=self.settings,
            figures=list(self.figures.values()),
            phases=self.phases,
            growth=self.growth,
            ratios=self.ratios,
            notes=self.notes,
        )


Measure = Callable[[Settings, Results], None]


def main(suite: str, doc: str, measure: Measure) -> None:
    """Runs one benchmark from the command line."""
    try:
        run_suite(suite, doc, measure, arguments(doc))
    except UserError as error:
        print(f"{suite}: {error}", file=sys.stderr)
        sys.exit(2)


def run_suite(suite: str, doc: str, measure: Measure, settings: Settings) -> Path:
    """Runs one benchmark and writes results/<suite>--<machine>.json."""
    results = Results(settings)
    print(f"== {suite}: {title(doc)}", flush=True)
    measure(settings, results)
    return write(results.record(suite, title(doc)), settings)


def write(record: Record, settings: Settings) -> Path:
    """Writes a record where the settings say."""
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / f"{record.suite}--{settings.machine}.json"
    path.write_text(json.dumps(record.model_dump(), indent=1) + "\n", encoding="utf-8")
    return path


def read(folder: Path = RESULTS) -> list[Record]:
    """Reads all results files of a folder."""
    return [Record.model_validate_json(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def arguments(doc: str, words: list[str] | None = None) -> Settings:
    """Reads the settings from the command line."""
    parser = argparse.ArgumentParser(description=title(doc))
    add_arguments(parser)
    return settings(parser.parse_args(words))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all benchmarks have."""
    parser.add_argument("--repeats", type=int, help="how often to measure; by default each benchmark's own number")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--machine", help="in the name of the results file; by default its processor and threads")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="checkout to compare with")
    parser.add_argument("--data", type=Path, help="photographs laid out as VOC is; by default scenes are drawn")
    parser.add_argument("--tiny", action="store_true", help="only to see that it runs")
    parser.add_argument("--out", type=Path, help="folder of the results file")
    parser.add_argument("--seconds", type=float, help="that trainings may take together")
    parser.add_argument("--commit", help="of this code, where its folder is no git checkout")


def settings(found: argparse.Namespace) -> Settings:
    """Checks the settings.

    Raises:
        UserError: there is no such device, peer or folder.
    """
    if found.device != "cpu" and not (found.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {found.device}: this machine has no such device; use cpu")
    if found.tiny and found.out is None:
        raise UserError("--tiny: its figures mean nothing; name a folder for them with --out")
    if found.data is not None and not (found.data / "JPEGImages").is_dir():
        raise UserError(f"--data {found.data}: holds no JPEGImages; name a folder that is laid out as VOC is")
    torch.set_num_threads(found.threads)
    device = torch.device(found.device)
    return Settings(
        device=device,
        repeats=found.repeats,
        machine=found.machine or machine_name(device),
        peers=peer_paths(found.peer),
        data=found.data,
        tiny=found.tiny,
        out=found.out or RESULTS,
        seconds=found.seconds,
        commit=found.commit,
    )


def peer_paths(words: list[str]) -> dict[str, Path]:
    """Reads the checkouts by name."""
    paths = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or name not in PEERS:
            raise UserError(f"--peer {word}: write it as NAME=PATH with NAME one of {', '.join(PEERS)}")
        if not Path(path).is_dir():
            raise UserError(f"--peer {word}: there is no folder {path}")
        paths[name] = Path(path).resolve()
    return paths


def machine_name(device: torch.device) -> str:
    """Returns the name of the machine: the GPU, or e.g. cpu-2-cores."""
    if device.type == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"cpu-{torch.get_num_threads()}-cores"


def title(doc: str) -> str:
    """Returns the first line of a docstring, without its full stop."""
    return doc.strip().splitlines()[0].rstrip(".")


def interleaved(
    candidates: dict[str, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = 2
) -> dict[str, list[float]]:
    """Measures the time of each candidate `repeats` times, s.

    The candidates take turns, so other work of the machine slows all of them alike. Compare them by ratio.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, run in candidates.items():
            found = timed(run, device)
            if turn >= warm_up:
                seconds[name].append(found)
    return seconds


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Measures the time of one call, s. The device is idle before and after it."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mb(run: Callable[[], Any], device: torch.device) -> float:
    """Measures the peak memory during a call, MB: on a GPU allocated memory, else resident memory.

    Raises:
        UserError: the system does not report it.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        run()
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise UserError(f"peak memory: needs Linux's /proc ({error})") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def resident_mb(device: torch.device) -> float:
    """Measures the memory that is in use now, MB."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def cpu_seconds() -> tuple[float, float, float] | None:
    """Reads three times, over all cores, s: since boot, busy, and used by this process and its ended children."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, idle, wait, *interrupts = (int(word) / os.sysconf("SC_CLK_TCK") for word in words)
    busy = user + nice + system + sum(interrupts)
    return busy + idle + wait, busy, sum(os.times()[:4])


def share_of_others(begin: tuple[float, float, float] | None, end: tuple[float, float, float] | None) -> float | None:
    """Computes the share of the cores' time that other processes used between two values of `cpu_seconds`."""
    if begin is None or end is None:
        return None
    passed, busy, own = (after - before for before, after in zip(begin, end, strict=True))
    return round(max(0.0, busy - own) / passed, 3) if passed else 0.0


def settle(device: torch.device) -> None:
    """Returns unused memory to the system, so that it does not count in the next peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def summary(values: list[float] | tuple[float, ...]) -> tuple[float, float]:
    """Returns median and interquartile range."""
    if len(values) < 2:
        return values[0], 0.0
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, high - low


def slope(points: list[tuple[float, float]]) -> float:
    """Fits a power law to the points with a size above 0 (least squares in logarithms). Returns its exponent."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points if size > 0]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else 0.0


def shown(value: float, unit: str) -> str:
    """Formats a value with its unit."""
    if unit == "s":
        return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "FLOP":
        return f"{value / 1e9:.4g} GFLOP"
    if unit == "FLOP/s":
        return f"{value / 1e12:.3g} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.3g} GFLOP/s"
    return f"{value:.3g}" if unit == "1" else f"{value:.4g} {unit}"


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages in PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Returns the commit of the checkout. It is dirty if a file has changed, except results and docs/performance.md."""
    described = environment.commit()
    if described is None:
        return None
    paths = [".", ":!benchmarks/results", ":!docs/performance.md"]
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", *paths]
    try:
        changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return described
    return described.removesuffix("-dirty") + ("-dirty" if changed.strip() else "")
