"""What only time shows: a run killed again and again, a disk that is really full, memory, resuming, checkpoints' cost.

`make soak` runs all of it, in less than 40 minutes on two cores, and writes docs/soak--<machine>.json.
Alone: `python tests/faults/soak.py --part killed`; `--quick` is a short form to try a change out, and writes nothing.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import yaml

from semiseg.engine import environment
from semiseg.runs import Run
from semiseg.scenes import write_scenes

DOCS = Path(__file__).parents[2] / "docs"
TINY = {
    "architecture": "unet",
    "encoder": "tu-test_efficientnet",
    "weights": None,
    "options": {"decoder_channels": [32, 24, 16, 8, 8]},
}
MB = 1e6


def write_recipe(folder: Path, size: int = 32, **sections: dict[str, Any]) -> Path:
    """A recipe for drawn scenes, which are there afterwards too: iMAS with a network that takes 30 steps a second."""
    scenes = folder / "scenes"
    if not scenes.exists():
        write_scenes(scenes, num_train=24, num_val=4, size=size, seed=0, labeled=8)
    lists = {name: f"splits/{name}.txt" for name in ("labeled", "unlabeled", "val")}
    values: dict[str, Any] = {
        "data": {"layout": "folder", "root": str(scenes), "background": "ground", "crop": 32, "workers": 0, **lists},
        "model": TINY,
        "method": {"name": "imas", "threshold": 0.3, "ema_decay": 0.5},
        "optim": {"lr": 0.02, "head_lr_factor": 2},
        "engine": {"batch_size": 2, "log_every": 7},
    }
    for section, changes in sections.items():
        values[section] |= changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def train(arguments: str, prepare: harness.Action = lambda: None, seconds: float = 1200) -> harness.Ended:
    """A run to its end, whatever that is."""
    return harness.Command(f"train {arguments}", prepare).wait(seconds)


# (a) killed


def killed(folder: Path, quick: bool) -> dict[str, Any]:
    """Compares a run that is killed many times, in every way, with an uninterrupted run."""
    steps, each = (500, 1) if quick else (2500, 6)
    recipe = write_recipe(folder, engine={"steps": steps, "eval_every": 60, "save_every": 9})
    begin = time.perf_counter()
    undisturbed = train(f"{recipe} --out {folder / 'undisturbed'}")
    assert undisturbed.code == 0, undisturbed
    seconds_undisturbed = time.perf_counter() - begin
    say(f"undisturbed: {steps} steps in {seconds_undisturbed:.0f} s")

    chance = np.random.default_rng(0)
    ways = [kill_at_random] * 3 * each + [kill_in_a_write] * 2 * each + [partial(stop, signum=signal.SIGTERM)] * each
    ways += [partial(stop, signum=signal.SIGINT)] * each
    out = folder / "disturbed"
    begin, counts, before, faults = time.perf_counter(), dict.fromkeys(("killed", "in a write", "stopped"), 0), 0, []
    for number, way in enumerate(chance.permutation(np.array(ways, dtype=object)), 1):
        command = harness.Command(f"train {recipe} --out {out} --set data.workers={chance.integers(3)}")
        what = way(command, out, chance, faults)
        done = harness.newest_step(out)
        if done < before:
            faults.append(f"went back from step {before} to {done}")
        say(f"{number} of {len(ways)}: {what}; step {done} of {steps}")
        before = done
        for key in counts:
            counts[key] += key in what
    lives = len(ways)
    while (last := train(f"{recipe} --out {out}")).code:
        faults.append(f"did not go on: {last.err}")
        lives += 1
        if lives > len(ways) + 3:
            break
    faults += harness.differences(harness.left_behind(out), harness.left_behind(folder / "undisturbed"))
    logged = [(r["kind"], r["step"]) for kind in ("train", "val") for r in Run(out).metrics(kind)]
    rows = [line.rsplit(",", 1)[0] for line in (out / "hardness.csv").read_text().splitlines()]
    if len({*logged}) < len(logged) or len({*rows}) < len(rows):
        faults.append("a step was logged twice")
    events = Run(out).events()
    return {
        "steps": steps,
        "SIGKILL": counts["killed"],
        "of them inside a checkpoint write": counts["in a write"],
        "SIGTERM or SIGINT": counts["stopped"],
        "times resumed": sum(event["event"] == "resumed" for event in events),
        "seconds": time.perf_counter() - begin,
        "seconds undisturbed": seconds_undisturbed,
        "enough": quick or (counts["killed"] >= 25 and counts["in a write"] >= 5 and counts["stopped"] >= 5),
        "faults": faults,
    }


def kill_at_random(command: harness.Command, out: Path, chance: np.random.Generator, faults: list[str]) -> str:
    """Somewhere from the check of the data to the thirtieth step or so."""
    time.sleep(chance.uniform(0, 4))
    return _kill(command, out, faults)


def kill_in_a_write(command: harness.Command, out: Path, chance: np.random.Generator, faults: list[str]) -> str:
    """When the folder appears into which a checkpoint is being written, or a moment later."""
    writes = chance.integers(1, 4)
    moment = chance.uniform(0, 0.01)
    seen: set[str] = set()

    def begun() -> bool:
        seen.update(path.name for path in (out / "checkpoints").glob(".step-*.tmp"))
        return len(seen) >= writes or not command.running()

    harness.until(begun)
    time.sleep(moment)
    return _kill(command, out, faults)


def _kill(command: harness.Command, out: Path, faults: list[str]) -> str:
    if not command.running():
        ended = command.wait()
        faults.append(f"ended by itself, {ended.code}: {ended.err}")
        return "ended by itself"
    command.send(signal.SIGKILL)
    command.wait()
    torn = {path.name[1:].removesuffix(".tmp") for path in (out / "checkpoints").glob(".step-*.tmp")}
    newest = max((path.name for path in (out / "checkpoints").glob("step-*")), default="")
    return "killed in a write" if any(name > newest for name in torn) else "killed"  # older ones were being deleted


def stop(command: harness.Command, out: Path, chance: np.random.Generator, faults: list[str], signum: int) -> str:
    """Ctrl-C as from a terminal, to the whole group, or SIGTERM to the process."""
    time.sleep(chance.uniform(0.05, 4))
    if not command.running():
        return _kill(command, out, faults)
    if signum == signal.SIGINT:
        os.killpg(command.pid, signum)
    else:
        command.send(signum)
    ended = command.wait()
    name = signal.Signals(signum).name
    saved = f"stopped by {name} after step {harness.newest_step(out)}, which is saved; the same command goes on\n"
    at_once = f"semiseg: stopped by {name}; the same command goes on\n"
    if (
        ended.code != 128 + signum
        or not (ended.err.endswith(saved) or ended.err == at_once)
        or ended.err.count("\n") > 1
    ):
        faults.append(f"stopped by {name}: exit code {ended.code}, {ended.err!r}")
    return f"stopped by {name}"


# (b) no room on the disk


def disk(folder: Path, quick: bool) -> dict[str, Any]:
    """A small file system in memory, in a namespace of our own where that is allowed, else mounted as root."""
    script = [sys.executable, str(Path(__file__)), "--inside", str(folder)]
    for how, start in (("user namespace", ["unshare", "-rm"]), ("mounted as root", ["unshare", "-m"])):
        try:
            probe = subprocess.run(
                [*start, "sh", "-c", f"mount -t tmpfs -o size=1m none {folder}"], capture_output=True
            )
        except FileNotFoundError:
            continue
        if probe.returncode == 0:
            done = subprocess.run([*start, *script], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                return {"tmpfs": how, "faults": [f"the part itself failed: {done.stdout[-500:]}"]}
            return {"tmpfs": how, **json.loads(done.stdout.splitlines()[-1])}
    return {"tmpfs": "neither a user namespace nor a mount is allowed here: nothing was tried", "faults": []}


def disk_inside(folder: Path) -> dict[str, Any]:
    """The three cases, on a file system of 12 MB; checkpoints are of 2 MB."""
    recipe = write_recipe(folder, engine={"steps": 60, "eval_every": 20, "save_every": 15, "log_every": 1})
    assert train(f"{recipe} --out {folder / 'undisturbed'}").code == 0
    expected = harness.left_behind(folder / "undisturbed")
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(small)], check=True)
    out, faults, said = small / "run", [], {}

    def fill(leave: int) -> None:
        with (small / "filler").open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(small).free - leave)))

    def once(what: str, ended: harness.Ended, *names: str) -> None:
        said[what] = ended.err.replace(str(folder), "").strip()
        one_line = ended.code == 2 and ended.err.count("\n") == 1
        if not one_line or "No space left" not in ended.err or not any(name in ended.err for name in names):
            faults.append(f"{what}: {ended}")
        (small / "filler").unlink(missing_ok=True)

    def to_the_end(what: str) -> None:
        ended = train(f"{recipe} --out {out}")
        if ended.code:
            faults.append(f"{what}: did not go on: {ended.err}")
        else:
            faults.extend(f"{what}: {line}" for line in harness.differences(harness.left_behind(out), expected))
        shutil.rmtree(out)

    fill(leave=0)
    once("start", train(f"{recipe} --out {out}"), f"{out}")
    to_the_end("start")

    for room in (200_000, 1_500_000):  # in the weights, in the momentum
        full = partial(harness.at, "semiseg.engine.checkpoint.save", 3, partial(fill, room))
        once(
            f"checkpoint, {room / MB} MB left", train(f"{recipe} --out {out}", full), f"{out}/checkpoints/step-00000030"
        )
        if harness.newest_step(out) != 15:
            faults.append(f"the checkpoint of step 15 is gone: {harness.newest_step(out)}")
        to_the_end("checkpoint")

    full = partial(harness.at, "semiseg.engine.step.make_batch", 16, partial(fill, 0))
    once("metrics", train(f"{recipe} --out {out}", full), "metrics.jsonl", "hardness.csv", "events.jsonl")
    if harness.newest_step(out) != 15:
        faults.append(f"metrics: the newest checkpoint is of step {harness.newest_step(out)}")
    to_the_end("metrics")

    fill(leave=4096)
    masks = small / "masks"
    predict = f"predict {folder / 'undisturbed'} {folder / 'scenes/images/val'} --out {masks}"
    once("report", harness.Command(predict).wait(), f"{masks}/")
    half = [str(path) for path in masks.rglob("*") if path.is_file() and not _is_image(path)]
    faults.extend(f"report: {path} is half written" for path in half)
    return {"said": said, "faults": faults}


def _is_image(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return not path.name.startswith(".")


# (c) memory


def memory(folder: Path, quick: bool) -> dict[str, Any]:
    """Resident memory and open files of the training process after each evaluation."""
    steps, every = (400, 40) if quick else (2000, 200)
    engine = {"steps": steps, "eval_every": every, "log_every": 10}
    recipe = write_recipe(folder, data={"workers": 2}, engine=engine)
    samples = folder / "samples.jsonl"

    def observe(on_scores: Callable[..., None]) -> Callable[..., None]:
        def observing(bar: Any, record: dict[str, Any]) -> None:
            on_scores(bar, record)
            loaders = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
            sample = {
                "step": record["step"],
                "rss_mb": _rss("self"),
                "open_files": len(list(Path("/proc/self/fd").iterdir())),
                "loaders_rss_mb": [_rss(pid) for pid in loaders],
            }
            with samples.open("a") as file:
                file.write(json.dumps(sample) + "\n")

        return observing

    command = harness.Command(
        f"train {recipe} --out {folder / 'run'}",
        lambda: harness.wrap("semiseg.engine.progress.ProgressBar.on_scores", observe),
    )
    shown = 0
    while command.running():
        time.sleep(1)
        lines = samples.read_text().splitlines() if samples.exists() else []
        for line in lines[shown:]:
            say(line)
        shown = len(lines)
    ended = command.wait()
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    growth = found[-1]["rss_mb"] / found[1]["rss_mb"] - 1
    files = {sample["open_files"] for sample in found}
    faults = [] if ended.code == 0 else [f"ended with {ended}"]
    if abs(growth) > 0.03:
        faults.append(f"resident memory changed by {growth:+.1%} between step {found[1]['step']} and the end")
    if len(files) > 1:
        faults.append(f"open files: {sorted(files)}")
    return {"steps": steps, "growth_since_second_evaluation": growth, "samples": found, "faults": faults}


def _rss(pid: int | str) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / MB


# (d) how long resuming takes


def resuming(folder: Path, quick: bool) -> dict[str, Any]:
    """From the built model to the first step, with its batch: of a run at step 100, and of one at step 900,000."""
    steps, at, rows = 1_000_000, 900_000, 16
    near = {"steps": steps, "eval_every": 100_000, "save_every": 100_000, "log_every": 10}
    recipe = write_recipe(folder, data={"workers": 2}, engine=near)
    out = folder / "run"

    def stop_at_100() -> None:
        harness.at("semiseg.engine.step.make_batch", 100, partial(harness.signal_itself, signal.SIGTERM))

    assert train(f"{recipe} --out {out}", stop_at_100).code == 143
    results = {"at step 100": _time_resuming(recipe, out)}
    say(f"at step 100: {results['at step 100']}")

    old = out / "checkpoints/step-00000100"
    state = json.loads((old / "state.json").read_text())
    state |= {"step": at, "pending": {}}
    (old / "state.json").write_text(json.dumps(state))
    old.rename(out / f"checkpoints/step-{at:08d}")
    record = Run(out).metrics("train")[-1]
    with (out / "metrics.jsonl").open("w") as file:
        for step in range(10, at + 50_000, 10):  # what came after the checkpoint is to be dropped
            file.write(json.dumps(record | {"step": step}) + "\n")
            if step % 100_000 == 0:
                file.write(json.dumps({"kind": "val", "step": step, "miou": 0.5, "accuracy": 0.5, "iou": [0.5]}) + "\n")
    logged = 100_000 if quick else at + 50_000
    with (out / "hardness.csv").open("w") as file:
        file.write("step,index,hardness\n")
        for step in range(at + 50_000 - logged + 1, at + 50_000 + 1):
            file.write("".join(f"{step},{index},0.{step % 10_000:04d}\n" for index in range(rows)))
    megabytes = (out / "hardness.csv").stat().st_size / MB
    say(f"hardness.csv: {logged} steps of {rows} rows, {megabytes:.0f} MB")
    results[f"at step {at}"] = _time_resuming(recipe, out)
    say(f"at step {at}: {results[f'at step {at}']}")

    slow = [f"{where}: {found['seconds']:.1f} s" for where, found in results.items() if found["seconds"] > 5]
    large = results[f"at step {at}"]["peak_rss_mb"] - results["at step 100"]["peak_rss_mb"]
    slow += [f"takes {large:.0f} MB more memory"] if large > 200 else []
    last = (out / "hardness.csv").read_bytes()[-40:].split(b"\n")[-2]
    if int(last.split(b",")[0]) != at:
        slow.append(f"the hardness history ends with {last!r}")
    return {**results, "hardness.csv": {"steps": logged, "rows a step": rows, "mb": megabytes}, "faults": slow}


def _time_resuming(recipe: Path, out: Path) -> dict[str, float]:
    """In a process that is killed as soon as it is ready."""
    times = out.parent / "times.json"

    def prepare() -> None:
        built: list[float] = []

        def around_build(build: Callable[..., Any]) -> Callable[..., Any]:
            def building(*args: Any) -> Any:
                method = build(*args)
                built.append(time.perf_counter())
                return method

            return building

        def ready() -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
            times.write_text(json.dumps({"seconds": time.perf_counter() - built[-1], "peak_rss_mb": peak}))
            harness.die()

        harness.wrap("semiseg.engine.setup.build_method", around_build)
        harness.at("semiseg.engine.step.Stepper.take", 1, ready)

    assert train(f"{recipe} --out {out}", prepare).code == 137
    return json.loads(times.read_text())


# (e) what checkpoints cost


def checkpoints(folder: Path, quick: bool) -> dict[str, Any]:
    """Share of the time that goes into checkpoints at the default interval, a tenth of the run."""
    steps = 10 if quick else 40
    model = {"architecture": "deeplabv3plus", "encoder": "resnet50", "weights": None, "options": {}}
    data = {"crop": 65 if quick else 321, "workers": 1}
    recipe = write_recipe(
        folder, 96 if quick else 321, data=data, model=model, engine={"steps": steps, "eval_every": steps}
    )
    spent = folder / "spent.jsonl"

    def timed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def timing(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                result = function(*args, **kwargs)
                resumable = kwargs.get("optimizer") is not None
                with spent.open("a") as file:
                    file.write(
                        json.dumps([name if name == "step" or resumable else "best", time.perf_counter() - begin])
                        + "\n"
                    )
                return result

            return timing

        return around

    def prepare() -> None:
        harness.wrap("semiseg.engine.step.Stepper.take", timed("step"))
        harness.wrap("semiseg.engine.checkpoint.save", timed("checkpoint"))

    ended = train(f"{recipe} --out {folder / 'run'}", prepare, 1800)
    assert ended.code == 0, ended
    lines = [json.loads(line) for line in spent.read_text().splitlines()]
    took = {kind: [seconds for name, seconds in lines if name == kind] for kind in ("step", "checkpoint", "best")}
    step, one = statistics.median(took["step"][1:]), statistics.median(took["checkpoint"])
    best = statistics.median(took["best"])
    cost = 10 * one + 10 * best  # of a run: one after each tenth, and after each evaluation one if it is the best yet
    newest = max((folder / "run/checkpoints").glob("step-*"))
    return {
        "network": "deeplabv3plus, resnet50; student and teacher",
        "crop_px": data["crop"],
        "batch": "2 + 2",
        "steps": steps,
        "checkpoints": len(took["checkpoint"]),
        "mb_per_checkpoint": sum(file.stat().st_size for file in newest.iterdir()) / MB,
        "seconds_per_step": step,
        "seconds_per_checkpoint": one,
        "seconds_per_best_checkpoint": best,
        "share_measured": sum(took["checkpoint"] + took["best"]) / sum(sum(values) for values in took.values()),
        # extrapolated: their number does not depend on that of the steps
        "share_of_1000_steps_at_most": _share(1000, step, cost),
        "share_of_40000_steps_at_most": _share(40_000, step, cost),
        "faults": [] if len(took["checkpoint"]) == 10 else [f"{len(took['checkpoint'])} checkpoints instead of 10"],
    }


def _share(steps: int, step: float, checkpoints: float) -> float:
    return checkpoints / (checkpoints + steps * step)


PARTS = {"killed": killed, "disk": disk, "memory": memory, "resuming": resuming, "checkpoints": checkpoints}


def main() -> None:
    """Runs the parts. The exit code is 1 if one of them finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="this one alone")
    parser.add_argument("--quick", action="store_true", help="a short form of each")
    parser.add_argument("--machine", default="cpu", help="stands in the name of the result file")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(disk_inside(chosen.inside)))
        return
    results: dict[str, Any] = {}
    for name, part in PARTS.items():
        if chosen.part in (None, name):
            say(f"part {name}")
            with tempfile.TemporaryDirectory(prefix="semiseg-soak-") as folder:
                begin = time.perf_counter()
                results[name] = part(Path(folder), chosen.quick)
                results[name]["part_seconds"] = time.perf_counter() - begin
    if chosen.part or chosen.quick:
        print(json.dumps(results, indent=1))
    else:
        record = {
            "suite": "soak",
            "date": datetime.now(UTC).date().isoformat(),
            "commit": environment.commit(),
            "versions": {"torch": torch.__version__},
            "machine": environment.machine(),
            "results": results,
        }
        (DOCS / f"soak--{chosen.machine}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    faults = [f"{name}: {fault}" for name, found in results.items() for fault in found["faults"]]
    faults += [f"{name}: too few kills" for name, found in results.items() if not found.get("enough", True)]
    for name, found in results.items():
        say(f"{name}: {'broken' if found['faults'] else 'as promised'}, {found['part_seconds']:.0f} s")
    for fault in faults:
        say(f"BROKEN {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
