"""Spelling is American everywhere, so that a search for a word finds every place."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "benchmarks", "docs")
SUFFIXES = {".py", ".md", ".yaml"}
# written in two parts, so that this file does not contain them
BRITISH = tuple(map("".join, (("labe", "ll"), ("colo", "ur"), ("normal", "is"), ("gr", "ey"), ("cent", "re"),
                              ("neighbo", "ur"), ("initial", "is"), ("behavio", "ur"))))  # fmt: skip


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES)


def test_spelling_is_american():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in BRITISH
        if word in line.lower()
    ]
    assert found == []
