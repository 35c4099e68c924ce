"""Start-up time of the command line: until a command answers, and until a run has taken its first step.

python benchmarks/startup.py [--data VOC]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from photographs import photographs

RECIPE = "voc-mini-cpu"

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import semiseg": ("-c", "import semiseg"),
    "import everything that trains": ("-c", "import semiseg.engine.train"),
    "semiseg --help": ("-m", "semiseg", "--help"),
    "semiseg methods": ("-m", "semiseg", "methods"),
    "semiseg train, refused for want of a recipe": ("-m", "semiseg", "train", "no-such-recipe.yaml"),
}


def start(words: tuple[str, ...]) -> None:
    """Runs a command. A command that fails is a bug of this benchmark."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == (2 if words[-1].endswith(".yaml") else 0), done.stderr


def first_step(root: Path, *changes: str) -> float:
    """Measures the seconds from the start of `semiseg train` to the record of its first step, and stops it then.

    Args:
        root: images as `photographs` lays them out.
        changes: settings that are not those of the recipe, e.g. `data.crop=32`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = ["train", RECIPE, "--out", str(out), "--set", f"data.root={root}", "--set", "engine.log_every=1"]
        lists = [f"data.{name}={name}.txt" for name in ("labeled", "unlabeled", "val")]
        settings = [word for each in ("data.masks=SegmentationClassAug", *lists, *changes) for word in ("--set", each)]
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "semiseg", *words, *settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            while not ((out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size):
                if process.poll() is not None:
                    raise AssertionError(process.communicate()[0].decode())
                time.sleep(0.005)
            seconds = time.perf_counter() - begin
            process.terminate()
            process.communicate()
        return seconds


def measure(run: common.Settings, results: common.Results) -> None:
    """Times all commands in turn, then the first step of training, with and without its imports."""
    results.time({name: lambda words=words: start(words) for name, words in COMMANDS.items()}, usual=5, warm_up=1)
    results.ratio("semiseg --help / import torch", "semiseg --help", "import torch")
    results.ratio("semiseg methods / import torch", "semiseg methods", "import torch")
    imports = results.figures["import everything that trains"].median
    with photographs(run.data, run.size(1600, 1600, 24)) as photos:
        results.settings |= {"images": photos.describe(), "recipe": RECIPE}
        first_step(photos.root)
        seconds = [first_step(photos.root) for _ in range(run.times(5))]
    results.figure("semiseg train, until its first step is taken", "s", *seconds)
    results.figure("the same beyond imports", "s", *(each - imports for each in seconds))
    for name, allowed in (("semiseg --help", 0.5), ("the same beyond imports", 10.0)):
        results.figure(f"allowed for {name}", "s", allowed)
        results.ratio(f"{name} / allowed", name, f"allowed for {name}")


if __name__ == "__main__":
    common.main("startup", __doc__, measure)
