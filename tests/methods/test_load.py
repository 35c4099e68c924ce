"""A method is found by the name of its module; an error inside the module is not hidden."""

import sys
from pathlib import Path

import pytest

from semiseg import methods
from semiseg.errors import UserError


@pytest.fixture
def own(tmp_path: Path, monkeypatch):
    """own(source) -> the dotted name of a module with this source."""
    monkeypatch.syspath_prepend(tmp_path)

    def own(source: str) -> str:
        (tmp_path / "own_methods").mkdir()
        (tmp_path / "own_methods/mine.py").write_text(source)
        return "own_methods.mine"

    yield own
    for name in [name for name in sys.modules if name.startswith("own_methods")]:
        del sys.modules[name]


def test_a_method_of_ones_own(own):
    assert (
        methods.load(own("from semiseg.method import SemiMethod\nclass Method(SemiMethod): pass")).__name__ == "Method"
    )


@pytest.mark.parametrize(
    ("source", "error"), [("import no_such_module", ModuleNotFoundError), ("None.x", AttributeError)]
)
def test_errors_of_the_module_are_shown(own, source, error):
    with pytest.raises(error):
        methods.load(own(source))


@pytest.mark.parametrize("name", ["imash", "own_methods.mine", "semiseg.types"])
def test_what_is_no_method(name):
    with pytest.raises(UserError, match=r"there is no .*choose one of .*ael, .*cps"):
        methods.load(name)
