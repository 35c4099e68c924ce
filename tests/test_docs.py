"""The pages in docs: links lead somewhere, each page is in the navigation, lists made from the code are up to date."""

import doctest
import importlib.util
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from semiseg import methods

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def program(name: str) -> ModuleType:
    """A module in docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


navigation = program("navigation")


def without_blocks(text: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    shown = [re.sub(r"[`*]", "", LINK.sub("", heading).replace("[", "")) for heading in headings]
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown]
    return {f"{each}-{plain[:i].count(each)}" if each in plain[:i] else each for i, each in enumerate(plain)}


def broken(page: Path, text: str, inside: Path) -> Iterator[str]:
    """The links of a page to files that are not there or not below `inside`, and to headings that are not there."""
    for link in LINK.findall(re.sub(r"`[^`\n]+`", "``", without_blocks(text))):
        if re.match(r"[a-z]+:", link):  # an address
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(inside):
            yield f"{link}: there is no such file"
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            yield f"{link}: there is no such heading"


def test_anchors_are_those_of_github():
    page = "# A page: `code`, *soft*\n```\n# none\n```\n## Twice\n## Twice\n## [Linked](a.md) one\n"
    assert anchors(page) == {"a-page-code-soft", "twice", "twice-1", "linked-one"}


def test_broken_links_are_found(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("docs/a.md", "docs/b.md", "outside.md"):
        (tmp_path / name).write_text("# Head\n")
    text = "# Top\n[x](b.md) [x](b.md#head) [x](#top) [x](https://x.org/y) `[x](code.md)`\n```\n[x](code.md)\n```\n"
    assert list(broken(tmp_path / "docs/a.md", text, tmp_path)) == []
    text = "# Top\n[x](c.md) [x](b.md#foot) [x](#head) ![x](c.png) [x](../outside.md)\n"
    assert [found.partition(":")[0] for found in broken(tmp_path / "docs/a.md", text, tmp_path / "docs")] == [
        "c.md", "b.md#foot", "#head", "c.png", "../outside.md"
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page):
    """On the site, too: it has nothing outside docs."""
    assert list(broken(page, page.read_text(encoding="utf-8"), inside=DOCS)) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_repository_lead_somewhere(name):
    assert list(broken(ROOT / name, (ROOT / name).read_text(encoding="utf-8"), inside=ROOT)) == []


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    shown = navigation.pages(navigation.expanded(nav, DOCS))
    assert sorted(shown) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_patterns_leave_out_pages_with_an_entry_of_their_own(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.md", "a.md", "z.md", "sub/index.md", *(f"sub/{n}.md" for n in "xkqbm"), "c.txt"):
        (tmp_path / name).touch()
    nav = ["z.md", {"Sub": ["sub/index.md", "sub/*.md"]}, {"Rest": ["*.md", {"B": "b.md"}]}, "none/*.md"]
    assert navigation.expanded(nav, tmp_path) == [
        "z.md", {"Sub": ["sub/index.md", *(f"sub/{n}.md" for n in "bkmqx")]}, {"Rest": ["a.md", {"B": "b.md"}]}
    ]  # fmt: skip


def test_every_method_has_a_page_and_every_page_a_method():
    assert sorted(page.stem for page in DOCS.glob("methods/*.md") if page.name != "index.md") == methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_pages_of_methods_have_the_same_headings_in_the_same_order(name):
    headings = re.findall(r"^## (.+)$", (DOCS / f"methods/{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = ["Idea", "Where each equation is", "Settings", "Where we deviate", "Cost"]
    rest = ["In our small protocol", "Published numbers, not ours"]
    assert [heading for heading in headings if heading in wanted] == wanted
    assert [heading for heading in headings if heading in rest] == sorted({*headings} & {*rest})


def test_made_pages_are_up_to_date():
    for path, content in program("pages").contents().items():
        assert path.read_text(encoding="utf-8") == content, f"{path.relative_to(ROOT)} is old; run: make docs-pages"


def test_example_of_the_table():
    found = doctest.testmod(program("pages"))
    assert (found.attempted, found.failed) == (1, 0)


def test_commands_of_the_start_page_are_in_the_readme():
    """Other tests run those of the README."""
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(commands.splitlines()) == 5
    assert commands in (ROOT / "README.md").read_text()


def test_a_page_begins_with_its_title():
    for page in PAGES:
        assert page.read_text(encoding="utf-8").startswith("# "), page


def test_lists_and_tables_follow_an_empty_line():
    """GitHub shows them without it; the site shows their signs as text."""
    for page in PAGES:
        lines = without_blocks(page.read_text(encoding="utf-8")).splitlines()
        for before, line in pairwise(lines):
            for start in (r"([-*]|\d+\.) ", r"\|"):
                item = re.match(start, line) and before.strip() and not re.match(rf"{start}| ", before)
                assert not item, f"{page.relative_to(ROOT)}: {line}"
