"""What masks mean that nobody has described."""

from pathlib import Path

import pytest

from semiseg.data.masks import Content
from semiseg.errors import UserError
from semiseg.init.colors import colors
from semiseg.init.values import propose
from semiseg.types import IGNORE, voc_color


def masks(counts, palette=None, blended=0.0) -> dict[Path, Content]:
    return {Path("m/a.png"): Content((4, 4), "8-bit gray PNG", counts, palette or {}, blended=blended)}


@pytest.mark.parametrize(
    ("counts", "names", "classes", "values", "background"),
    [
        ({0: 9, 1: 1, 2: 1}, None, ("background", "class_1", "class_2"), None, 0),
        ({0: 2, 1: 5, 2: 5}, None, ("class_0", "class_1", "class_2"), None, None),  # 0 is rare: a class
        ({0: 9, 1: 1, 2: 1, 255: 3}, ["sky", "sea", "sun"], ("sky", "sea", "sun"), None, None),
        ({0: 9, 2: 1}, ["sky", "sea", "sun"], ("sky", "sea", "sun"), None, None),  # a class that does not occur
        ({0: 9, 255: 1}, None, ("background", "object"), {255: 1}, 0),
        ({0: 9, 1: 1}, ["rest", "disc"], ("rest", "disc"), None, 0),
        ({1: 9, 2: 1}, None, ("background", "object"), {1: 0, 2: 1}, 0),
        ({1: 5, 2: 1, 3: 1}, None, ("class_1", "class_2", "class_3"), {1: 0, 2: 1, 3: 2}, None),
        ({1: 5, 2: 1, 3: 1, 255: 1}, None, ("class_1", "class_2", "class_3"), {1: 0, 2: 1, 3: 2, 255: IGNORE}, None),
        ({0: 9, 128: 1, 255: 1}, None, ("background", "class_128", "class_255"), {128: 1, 255: 2}, 0),
        ({0: 9, 128: 1, 255: 1}, ["a", "b", "c"], ("a", "b", "c"), {128: 1, 255: 2}, None),
        ({0: 9, 7: 1, 11: 1, 255: 1}, None, ("background", "class_7", "class_11"), {7: 1, 11: 2, 255: IGNORE}, 0),
        ({-1: 5, 0: 9, 1: 1}, None, ("background", "class_1"), {-1: IGNORE}, 0),
        ({-1: 5, 0: 9, 1: 1}, ["a", "b"], ("a", "b"), {-1: IGNORE}, None),
        ({0: 5, 1: 9, 2: 1}, ["a", "b"], ("a", "b"), {0: IGNORE, 1: 0, 2: 1}, None),  # 0 has no name
        ({0: 9, 7: 1, 11: 1}, ["a", "b", "c"], ("a", "b", "c"), {7: 1, 11: 2}, None),
    ],
)  # fmt: skip
def test_values(counts, names, classes, values, background):
    found = propose(masks(counts), names)
    assert (found.names, found.values, found.background) == (classes, values, background)
    assert len(found.colors) == len({*found.colors}) == len(classes)


def test_255_between_a_class_and_nothing_is_a_question():
    stretched = propose(masks({0: 9, 128: 1, 255: 1}))
    assert stretched.doubt is not None
    assert "is 255 a class?" in stretched.doubt
    assert stretched.other is not None
    assert stretched.other.values == {128: 1, 255: IGNORE}
    others = propose(masks({0: 9, 7: 1, 11: 1, 255: 1}))
    assert others.doubt is not None
    assert "is 255 not labeled (ignored)?" in others.doubt
    assert others.other is not None
    assert others.other.values == {7: 1, 11: 2, 255: 3}
    for values in ({0: 9, 1: 1, 255: 1}, {1: 9, 2: 1, 255: 1}):  # a class that no mask shows, or the last one
        named = propose(masks(values), ["sky", "sea", "sun"])
        assert (named.names, named.values) == (("sky", "sea", "sun"), None)
        assert "3 names for the values" in named.doubt
        assert named.other.values[255] == 2


def test_a_palette_gives_the_classes_their_colors():
    palette = {0: (0, 0, 0), 1: (200, 10, 10), 2: (0, 90, 0)}
    assert propose(masks({0: 9, 1: 1, 2: 1}, palette)).colors == tuple(palette.values())
    gray = {value: (value, value, value) for value in range(3)}
    assert propose(masks({0: 9, 1: 1, 2: 1}, gray)).colors == colors(3, background=True)


def test_colors_become_classes_black_first():
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    found = propose(masks({red: 3, black: 1, blue: 9}))
    assert found.names == ("background", "color_0000ff", "color_ff0000")
    assert found.colors == (black, blue, red)
    assert found.background == 0
    named = propose(masks({red: 3, black: 1, blue: 9}), ["sea", "sun"])
    assert (named.names, named.colors, named.ignored) == (("sea", "sun"), (blue, red), (black,))
    assert named.doubt is not None
    assert "#0000ff is sea, #ff0000 is sun" in named.doubt
    assert not named.likely


@pytest.mark.parametrize(
    ("colors", "names"),
    [
        ([voc_color(0), voc_color(1), voc_color(2)], ["ground", "sea", "sun"]),
        ([(0, 0, 0), (9, 9, 1)], ["background", "a"]),
    ],
)
def test_colors_whose_order_is_known_are_no_question(colors, names):
    found = propose(masks(dict.fromkeys(colors, 5)), names)
    assert (found.names, found.colors, found.doubt) == (tuple(names), tuple(colors), None)


@pytest.mark.parametrize("names", [None, ["ground", "sea", "sun"]])
def test_colors_of_voc_have_its_order_and_borders_are_ignored(names):
    counts = {voc_color(0): 9, voc_color(1): 2, voc_color(2): 3, voc_color(IGNORE): 4}
    found = propose(masks(counts), names)
    assert found.names == tuple(names or ("background", "color_800000", "color_008000"))
    assert (found.colors, found.ignored) == (tuple(counts)[:3], (voc_color(IGNORE),))
    others = propose(masks(counts | {(1, 2, 3): 1}))  # not VOC's colors
    assert (len(others.names), others.ignored) == (5, ())


def test_gray_levels_in_color_files_are_values():
    assert propose(masks({(0, 0, 0): 9, (255, 255, 255): 1})).values == {255: 1}


@pytest.mark.parametrize(
    ("counts", "names", "message"),
    [
        ({0: 9}, None, "one value only"),
        (dict.fromkeys(range(200), 1), None, "200 different values"),
        ({0: 9, 1: 1, 2: 1, 3: 1}, ["a", "b"], "names 2 classes"),
        ({0: 9, 1: 1, 2: 1}, ["a", "a"], "each once"),
        ({(1, 2, 3): 9, (4, 5, 6): 1}, ["a", "b", "c"], "names 3 classes, but the masks hold 2 colors"),
    ],
)
def test_what_cannot_be_understood(counts, names, message):
    blended = 0.3 if len(counts) > 100 else 0.0
    with pytest.raises(UserError, match=message):
        propose(masks(counts, blended=blended), names)


def test_colors_beside_values_are_refused():
    both = {
        Path("a.png"): Content((4, 4), "color PNG", {(1, 2, 3): 16}, {}),
        Path("b.png"): Content((4, 4), "8-bit gray PNG", {0: 16}, {}),
    }
    with pytest.raises(UserError, match=r"a\.png, and others values, e\.g\. b\.png"):
        propose(both)


def test_soft_edges_of_a_binary_mask_are_no_classes():
    counts = {0: 90, 255: 80, 85: 3, 170: 2}
    with pytest.raises(UserError, match="4 different values or colors, as soft edges"):
        propose(masks(counts, blended=0.3))
    assert len(propose(masks(counts)).names) == 4  # nested objects have sharp edges


def test_two_annotators_with_two_values_for_one_object():
    first = Content((4, 4), "8-bit gray PNG", {0: 9, 1: 1}, {})
    second = Content((4, 4), "8-bit gray PNG", {0: 9, 255: 1}, {})
    found = propose({Path("a.png"): first, Path("b.png"): second}, ["ground", "disc"])
    assert (found.names, found.values, found.background) == (("ground", "disc"), {1: 1, 255: 1}, 0)
    assert found.doubt == "some masks hold 0 and 1, others 0 and 255; do 1 and 255 both mean disc?"
    assert found.other is not None
    assert found.other.values == {255: IGNORE}
    both = Content((4, 4), "8-bit gray PNG", {0: 9, 1: 1, 255: 1}, {})
    assert propose({Path("a.png"): first, Path("b.png"): both}).values is None  # 255 is not labeled there


@pytest.mark.parametrize("background", [True, False])
def test_colors_differ(background):
    found = colors(254, background)
    assert len({*found}) == len(found) == 254
    assert ((0, 0, 0) in found) == background
