from pathlib import Path

import pytest

from semiseg.data.classes import read_classes
from semiseg.errors import UserError
from semiseg.types import voc_color

BACKGROUND, DISC = (10, 0, 0), (200, 30, 30)
COLORS = {BACKGROUND: 0, DISC: 1}
NAMES = ("background", "red disc")


def read(tmp_path: Path, text: str, name: str = "classes.txt", background: str | int | None = None):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_classes(tmp_path / name, background)


@pytest.mark.parametrize(
    "text",
    [
        "background\nred disc\n",
        "# comment\n\nbackground\r\n  red disc  \n",
        "0: background\n1: red disc",
        "0 background\n1 red disc",
        "0,background\n1,red disc",
        "0\tbackground\n1\tred disc",
        "id,name\n0,background\n1,red disc",
        "names:\n  0: background\n  1: red disc",
        "background:::\nred disc:::",
    ],
)
def test_names_without_colors(tmp_path, text):
    table, stated = read(tmp_path, text)
    assert table.names == NAMES
    assert table.colors == (voc_color(0), voc_color(1))
    assert stated == {}


@pytest.mark.parametrize(
    "text",
    [
        "background #0a0000\nred disc #C81E1E",
        "background,#0a0000\nred disc,#C81E1E",
        "0: background #0a0000\n1: red disc #C81E1E",
        "# label:color_rgb:parts:actions\nbackground:10,0,0::\nred disc:200,30,30:arm,leg:walk",
        "name,r,g,b\nbackground,10,0,0\nred disc,200,30,30",
        "Name, R, G, B\nbackground, 10, 0, 0\nred disc, 200, 30, 30",
        "background 10 0 0\nred disc 200 30 30",
        "name red green blue\nbackground 10 0 0\nred disc  200  30  30",
        "background;10;0;0\nred disc;200;30;30",
        "background\t10\t0\t0\nred disc\t200\t30\t30",
        "background: 10 0 0\nred disc: 200 30 30",
        "10 0 0\t\tbackground\n200 30 30\t\tred disc",
        "id,name,r,g,b\n0,background,10,0,0\n1,red disc,200,30,30",
        '0 background 10 0 0\n1 "red disc" 200 30 30',
    ],
)
def test_names_with_colors(tmp_path, text):
    table, stated = read(tmp_path, text)
    assert table.names == NAMES
    assert table.colors == (BACKGROUND, DISC)
    assert stated == COLORS


def test_a_class_without_a_color_has_one_that_the_file_does_not_state(tmp_path):
    table, stated = read(tmp_path, "background\nred disc #c81e1e\nbox")
    assert table.colors == (voc_color(0), DISC, voc_color(2))
    assert stated == {DISC: 1}


@pytest.mark.parametrize(
    "names",
    [
        ("background", "3 wheeler", "4 wheeler"),
        ("3D print", "2D print"),
        ("0", "1", "2"),
        ("class 0", "class 1"),
        ("tree, oak", "tree, birch"),
        ("c++", "name", "label"),
        ("_background_", "ignore", "写真"),
        ("[/sky]", "[void]"),
        ("red label", "blue label", "id"),
        (f"{'1' * 5000} a", "b"),
        (f"a {'1' * 5000} 2 3", "b"),
    ],
)
def test_names_that_look_like_another_form(tmp_path, names):
    table, stated = read(tmp_path, "\n".join(names))
    assert table.names == names
    assert stated == {}


def test_names_with_numbers_and_separators_beside_colors(tmp_path):
    table, stated = read(tmp_path, 'zone 1,10,0,0\n"zone, far",200,30,30')
    assert table.names == ("zone 1", "zone, far")
    assert stated == COLORS


def test_labelme_ignored_pixels_are_no_class(tmp_path):
    assert read(tmp_path, "__ignore__\n_background_\ndisc")[0].names == ("_background_", "disc")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("crack", ("1 class, 'crack'", "between 2 and 254", "add the background as the first line")),
        ("name,r,g,b\ncrack,1,2,3", ("1 class, 'crack'",)),
        ("# nothing", ("0 classes",)),
        ("a\nb\na", ("'a' occurs twice",)),
        ("0: a\n1: a", ("'a' occurs twice",)),
        ("Class\na\nb", ("class 0 is called 'Class'", "header")),
        ("a, b, c", ("has one line, 'a, b, c'",)),
        ('0  0  0  0  1  1  "a"\n1  9  9  9  1  1  "b"', ("has columns",)),  # ITK-SNAP
        ("a #ff0000\nb\nc #FF0000", ("'a' and 'c' have the same color (255, 0, 0)",)),
        ("a,1,2,3\nb,1,2,3", ("'a' and 'b' have the same color",)),
        ("1 a\n2 b\n3 c", ("are 1, 2, 3, not 0, 1, 2", "names alone", "if 0 in the masks is the background")),
        ("0 a\n2 b\n5 c", ("are 0, 2, 5,", "the names alone", "data.values={2: 1, 5: 2}")),
        ("0 a\n255 b", ("are 0, 255,", "data.values={255: 1}")),
        ("0 a\n1 b\n255 void", ("are 0, 1, 255,", "without that of 255")),
        ("1 a\n0 b", ("are 1, 0,", "in the order of the values in the masks")),
        ("".join(f"{n}: c{n}\n" for n in range(1, 99)), ("are 1, 2, 3, 4, 5, 6 ...,",)),
        ("id name\n0 a\n1 b", ("'id name' has no number", "header")),
        ("a,1,2,3\nb", ("'b' has another form", "name,r,g,b")),
        ("a:1,2,3::\nb", ("'b' has another form",)),
        ("a,1,2,3\nb,1,2,256", ("'b,1,2,256' has no color",)),
        ("a,1,2,3,255\nb,4,5,6,255", ("'a,1,2,3,255' has no color of three numbers",)),
        ("a 1 2  3 255\nb 4 5 6 255", ("'a 1 2  3 255' has no color of three numbers",)),
        ("a,0\nb,1", ("'a,0' has columns",)),
        ("a: 1\nb: 0", ("'a: 1' has columns",)),
        ("0 1 2 3 a\n1 2 3 4 b", ("has columns",)),
        ("a\tb\nc", ("a tab",)),
        ("a\n__ignore__\nb", ("__ignore__ is no class", "first line", "255")),
        ('{"a": 0,\n"b": 1}', ("JSON, YAML", "name,r,g,b")),
        ("[a,\nb]", ("JSON, YAML",)),
        ('["a", "b"]', ("JSON, YAML",)),
        ('[\n"a",\n"b"\n]', ("JSON, YAML",)),
    ],
)
def test_what_is_wrong_with_a_list_of_classes(tmp_path, text, says):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    for part in ("classes.txt: ", *says):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["1 a\n0 b", "0 a\n0 b", "-1 a\n0 b", "0 a\n5 b\n2 c"])
def test_no_values_are_advised_where_they_would_mix_up_classes(tmp_path, text):
    with pytest.raises(UserError, match=r"in the order of the values in the masks$"):
        read(tmp_path, text)


def test_a_file_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"data.yaml: is no plain list"):
        read(tmp_path, "names: 2\na\n", name="data.yaml")


def test_background(tmp_path):
    text = "0: sky\n1: ground"
    assert [read(tmp_path, text, background=which)[0].background for which in (None, "ground", 0)] == [None, 1, 0]
    for which in ("sea", 2):
        with pytest.raises(UserError, match=r"data\.background: no class '?(sea|2)'? in"):
            read(tmp_path, text, background=which)
