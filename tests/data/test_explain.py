"""What the masks of a dataset mean together."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from semiseg.data.dataset import MaskCoding
from semiseg.data.explain import Meaning, explain
from semiseg.data.masks import Content
from semiseg.errors import UserError
from semiseg.types import IGNORE, voc_color

NAMES = ("ground", "disc", "box", "bar", "dot")
RED, BLUE, BLACK, WHITE = (200, 30, 30), (30, 60, 200), (0, 0, 0), (255, 255, 255)


def gray(*values: int, counts: tuple[int, ...] = ()) -> Content:
    return Content((1, 10), "8-bit gray PNG", dict(zip(values, counts or [10] * len(values), strict=True)), {})


def palette(*colors: tuple[int, int, int], reduced: bool = True) -> Content:
    return Content((1, 10), "palette PNG", dict.fromkeys(range(len(colors)), 10), dict(enumerate(colors)), reduced)


def meaning(*masks: Content, classes: int = 3, settable: bool = True, **coding) -> Meaning:
    named = {Path(f"{number}.png"): content for number, content in enumerate(masks)}
    return explain(named, MaskCoding(classes, **coding), NAMES[:classes], settable)


def refused(*masks: Content, **options) -> str:
    with pytest.raises(UserError) as caught:
        meaning(*masks, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_of_all_masks_are_counted():
    found = meaning(gray(0, 1, counts=(7, 3)), gray(0, 2, IGNORE, counts=(1, 2, 3)))
    assert found == Meaning({0: 8, 1: 3, 2: 2, 255: 3}, {0: 2, 1: 1, 2: 1, 255: 1}, {0: 0, 1: 1, 2: 2, 255: 255}, ())


@pytest.mark.parametrize(
    ("values", "classes", "mapping"),
    [
        ([0, 127, 255], 3, {127: 1, 255: 2}),
        ([0, 85, 170, 255], 3, {85: 1, 170: 2}),  # 255 is ignored
        ([0, 50, 100], 3, {50: 1, 100: 2}),
        ([0, 1001, 1002], 3, {1001: 1, 1002: 2}),
        ([10, 20], 2, {10: 0, 20: 1}),
        ([0, 128], 2, {128: 1}),
        ([0, 64, 255], 5, {63: 1, 127: 2, 191: 3, 255: 4}),  # some levels are missing: 64 is the rounded 63.75
        ([1, 2, 3], 3, {1: 0, 2: 1, 3: 2}),
        ([0, 1, 2, 3], 3, {0: 255, 1: 0, 2: 1, 3: 2}),
        ([0, 1, -1], 3, {-1: 255}),
    ],
)
def test_the_mapping_that_explains_all_values_is_proposed_and_works(values, classes, mapping):
    masks = [gray(*sorted({values[0], value})) for value in values[1:]]  # no mask shows all
    message = refused(*masks, classes=classes)
    text = re.search(r"data.values='\{([^}]*)\}'", message)[1]
    proposed = {int(key): int(index) for key, index in (entry.split(":") for entry in text.split(","))}
    if 64 in values:
        mapping = {64: 1, 128: 2, 191: 3, 255: 4}
    assert proposed == mapping
    found = meaning(*masks, classes=classes, values=proposed)
    assert set(found.classes.values()) <= {*range(classes), IGNORE}
    assert found.notes == () or values == [0, 85, 170, 255]


def test_a_missing_background_line_is_asked_for():
    message = refused(gray(0, 1, 2), gray(0, 2), classes=2)
    assert "0 (40.0 %), 1 (20.0 %), 2 (40.0 %)" in message
    assert "add a line for it at the top of the class file" in message


def test_soft_edges_are_no_classes():
    message = refused(gray(0, 28, 56, 85, 113, 255, counts=(70, 2, 2, 2, 2, 22)), classes=2)
    assert "soft edges" in message
    assert "data.values=" not in message
    assert "instance" in refused(gray(*range(30)), classes=2)


def test_a_stray_value_is_named_with_its_masks():
    message = refused(gray(0, 1, 2), gray(0, 1, 2), gray(0, 1, 99, counts=(5, 4, 1)), classes=5)
    assert message.startswith("data.values: 1 of 3 masks, e.g. 2.png, hold 99, neither a class (0 to 4) nor 255")
    assert "99 (1.4 %)" in message


def test_layouts_without_the_setting_do_not_propose_it():
    message = refused(gray(0, 40), settable=False)
    assert "data.values" not in message
    assert "0.png" in message


def test_what_the_setting_leaves_out_is_refused_or_noted():
    assert "0 (33.3 %), 127 (33.3 %), 200 (33.3 %); name it, too" in refused(gray(0, 127, 200), values={127: 1})
    (note,) = meaning(gray(0, 127, 255), values={127: 1}).notes
    assert note.startswith("255 (33.3 % of the labeled pixels) is ignored")
    assert meaning(gray(0, 127, 255), values={127: 1, 255: 255}).notes == ()
    message = refused(gray(0, 1, 2, 3), values={1: 0, 2: 1, 3: 2})
    assert "hold 0, which it does not name and which so means class 0 (ground), as 1 does" in message


def test_two_classes_in_two_conventions():
    message = refused(gray(0, 1), gray(0, 255), classes=2)
    assert "data.values='{1: 1, 255: 1}'" in message
    assert "data.values='{255: 255}'" in message
    assert meaning(gray(0, 1), gray(0, 255), classes=2, values={1: 1, 255: 1}).notes == ()
    assert meaning(gray(0, 1), gray(0, 255), classes=2, values={255: 255}).notes == ()
    (note,) = meaning(gray(0, 1, 255), gray(0, 255), gray(0, 255), classes=2).notes
    assert note.startswith("2 masks, e.g. 1.png, hold 0 and 255 and no other class")
    assert meaning(gray(0, 1, 255), gray(0, 1), classes=2).notes == ()  # void borders


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ([palette(BLACK, RED, BLUE), palette(BLACK, BLUE)], "value 1 is #1e3cc8 here and #c81e1e there"),
        ([palette(BLACK, RED), palette(RED, BLUE)], "1.png: its palette differs from that of 0.png"),
        ([palette(RED, BLACK)], "black has the value 1"),
        ([palette(BLACK, (100,) * 3), palette(BLACK, WHITE)], "value 1 is #ffffff here"),
    ],
)
def test_palettes_that_contradict_each_other(masks, says):
    message = refused(*masks)
    assert says in message
    assert "data.colors" in message


def test_two_classes_in_several_conventions():
    message = refused(gray(0, 254), gray(0, 255), gray(0), classes=2)
    assert "no mask holds two of 254, 255; if each of them means disc, set data.values='{254: 1, 255: 1}'" in message
    assert "data.values='{254: 1}'" in refused(gray(0, 254, 255), gray(0, 254), classes=2)


def test_masks_that_start_at_0_and_at_1():
    message = refused(gray(0, 1, 2), gray(1, 2, 3), gray(1, 3))
    assert "no mask holds both 0 and 3; do some masks start at 0 and others, e.g. 1.png, at 1?" in message
    assert "data.values=" not in message


def test_255_is_named_beside_values_without_a_class():
    assert "{99: CLASS, 255: CLASS}" in refused(gray(0, 1, 2), gray(0, 99, 255))


def test_blended_edges_are_noted():
    (note,) = meaning(gray(0, 2), replace(gray(0, 1, 2), blended=0.06), replace(gray(0, 1), blended=0.04)).notes
    assert note.startswith("Masks with values between those of both sides at their edges: 1 of 3, e.g. 1.png; ")


def test_palettes_that_agree_or_need_not():
    voc = palette(*(voc_color(value) for value in range(3)))
    levels = palette(*((value,) * 3 for value in range(3)))
    assert meaning(voc, levels, palette(BLACK, RED), palette(BLACK, RED, BLUE), gray(0, 1)).notes == ()


def test_colors():
    known = {BLACK: 0, RED: 1, BLUE: 2}
    color = Content((1, 10), "color PNG", {BLACK: 9, RED: 1}, {})
    found = meaning(color, palette(RED, BLACK), gray(0, 2), colors=known)
    assert found.classes == {BLACK: 0, RED: 1, 0: 0, 2: 2}
    assert found.pixels == {BLACK: 19, RED: 11, 0: 10, 2: 10}
    assert "#000000 (90.0 %), #c81e1e (10.0 %)" not in refused(color, colors={BLACK: 0})
    assert "hold #c81e1e (10.0 %), which no class has" in refused(color, colors={BLACK: 0})
    voc = Content((1, 10), "color PNG", {voc_color(0): 9, voc_color(2): 1}, {})
    assert """data.colors='{"#000000": 0, "#008000": 2}'""" in refused(voc)
    assert "other masks, e.g. 0.png, have to be read by color" in refused(
        palette(RED, BLACK), palette(BLACK, (1, 2, 3)), colors=known
    )
