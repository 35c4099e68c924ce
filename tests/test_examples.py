"""The examples in docstrings print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
EXAMPLES = {path: path.read_text().count(">>> ") for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize(
    "path", [path for path, count in EXAMPLES.items() if count], ids=lambda path: path.relative_to(SOURCE).as_posix()
)
def test_examples_print_what_they_say(path):
    module = importlib.import_module(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted == EXAMPLES[path], "doctest did not find every example of the file"
