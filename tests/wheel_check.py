"""Checks what `pip install` gives: builds semiseg, installs it in a clean environment and trains there.

python tests/wheel_check.py --python python3.13

It trains outside the checkout, in a temporary folder of 6 GB (the environment has its own torch), which it removes.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}  # no PYTHONPATH

IN_DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
NUM_VAL = 4
LOOK = f"""
import sys
from pathlib import Path

import semiseg
from semiseg.scenes import write_scenes

package = Path(semiseg.__file__).resolve().parent
assert package.is_relative_to(Path(sys.prefix).resolve()), f"{{package}} is not in this environment"
assert (package / "py.typed").is_file(), f"{{package}} has no py.typed"
write_scenes(Path("photos"), num_train=14, num_val={NUM_VAL}, size=32, seed=0, labeled=6)
"""
SMALL = (
    "data.crop=32", "data.long_side=null", "data.workers=0", "engine.device=cpu", "engine.precision=fp32",
    "engine.steps=2", "engine.batch_size=2", "engine.eval_every=1", "engine.save_every=2",
    "model={architecture: unet, encoder: tu-test_efficientnet, weights: null}",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    says = "interpreter, by name or path; of several the first that works"
    parser.add_argument("--python", nargs="+", default=[sys.executable], help=says)
    python, version = interpreter(parser.parse_args().python)
    start = time.perf_counter()

    def say(what: str) -> None:
        print(f"wheel-check: {what} ({time.perf_counter() - start:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name)
        say(f"Python {version}, {python}")
        wheel = build(python, folder)
        say(f"built {wheel.name}, {wheel.stat().st_size / 1000:.0f} kB")
        install(python, wheel, folder / "environment")
        say("installed")
        use(folder / "environment/bin", folder / "elsewhere")
        say("trained, evaluated, predicted")
    say("removed what it made")


def interpreter(names: list[str]) -> tuple[str, str]:
    """Finds the first Python that works, on PATH or in pyenv; returns its path and its version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for name in names:
        on_path = [shutil.which(name, path=folder) for folder in os.get_exec_path()]
        in_pyenv = [str(path) for path in sorted(pyenv.glob(f"versions/*/bin/{Path(name).name}"))]
        for path in dict.fromkeys(filter(None, [*on_path, *in_pyenv])):
            code = "import ensurepip, platform, venv; print(platform.python_version())"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
            if done.returncode == 0:
                return path, done.stdout.strip()
            print(f"wheel-check: {path} does not work: {done.stderr.strip().partition(chr(10))[0]}")
        print(f"wheel-check: no {name} works here")
    sys.exit("wheel-check: name another with --python")


def build(python: str, folder: Path) -> Path:
    """Builds the sdist, and from it the wheel; checks that both hold exactly the files that git tracks."""
    run(python, "-m", "venv", folder / "builder")
    run(folder / "builder/bin/pip", "install", "--quiet", "build")
    run(folder / "builder/bin/python", "-m", "build", "--outdir", folder / "dist", ROOT)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")

    tracked = set(filter(None, run("git", "-C", ROOT, "ls-files", "-z").split("\0")))
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    compare(sdist, packed, {name for name in tracked if not name.startswith(".ci/")} | {"PKG-INFO"})
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    info = {f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/{name}" for name in IN_DIST_INFO}
    compare(wheel, packed, {name.removeprefix("src/") for name in tracked if name.startswith("src/")} | info)
    return wheel


def compare(archive: Path, packed: set[str], wanted: set[str]) -> None:
    if packed != wanted:
        says = f"lacks {sorted(wanted - packed)} and has these, which git does not track: {sorted(packed - wanted)}"
        sys.exit(f"wheel-check: {archive.name} {says}")


def install(python: str, wheel: Path, environment: Path) -> None:
    run(python, "-m", "venv", environment)
    run(environment / "bin/pip", "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel)
    run(environment / "bin/pip", "check")


def use(programs: Path, place: Path) -> None:
    """Takes a new user's first steps in a folder with a few photographs."""
    place.mkdir()
    run(programs / "python", "-c", LOOK, place=place)
    semiseg = programs / "semiseg"
    assert " folder " in run(semiseg, "recipes", place=place)
    run(semiseg, "recipes", "folder", "--out", "mine.yaml", place=place)
    run(semiseg, "train", "folder", *(word for setting in SMALL for word in ("--set", setting)), place=place)
    assert "mIoU" in run(semiseg, "evaluate", "runs/folder", place=place)
    run(semiseg, "predict", "runs/folder", "photos/images/val", "--out", "masks", place=place)
    assert len(list((place / "masks").glob("[!.]*"))) == 2 * NUM_VAL + 1  # masks, overlays and the legend


def run(*command: str | Path, place: Path = ROOT) -> str:
    """Runs a command and returns what it prints; exits with the command and its output if it fails."""
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}wheel-check: failed: {shlex.join(map(str, command))}")
    return done.stdout


if __name__ == "__main__":
    main()
