from pathlib import Path

import pytest

from semiseg.data.catalog import Catalog
from semiseg.data.dataset import DataConfig, MaskCoding, Sample
from semiseg.data.lists import assemble, read_lines, read_list, read_lists, rest
from semiseg.data.scan import scan
from semiseg.errors import UserError
from semiseg.types import ClassTable

CLASSES = ClassTable.of(("a", "b"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    names = ["2007_000032", "2007_000033", "train/0001TP_006810", "test/0001TP_006810", "my photo", "my photo 2", "x.y"]
    names.append("\u00e9t\u00e9")
    samples = [Sample(name, tmp_path / f"JPEGImages/{name}.jpg", tmp_path / f"own/{name}.png") for name in names]
    (tmp_path / "SegmentationClassAug").mkdir()
    (tmp_path / "SegmentationClassAug/2007_000032.png").touch()
    return Catalog(tmp_path, samples)


def names_in(text: str, catalog: Catalog, listed_masks: bool = True) -> list[str]:
    path = catalog.root / "list.txt"
    path.write_bytes(text.encode())
    return [sample.name for sample in read_list(path, catalog, listed_masks, "data.labeled")]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("2007_000032", "2007_000032"),
        ("2007_000032.jpg", "2007_000032"),
        ("2007_000032.png", "2007_000032"),
        ("JPEGImages/2007_000032.jpg", "2007_000032"),
        ("/JPEGImages/2007_000032.jpg", "2007_000032"),
        ("./JPEGImages/2007_000032.jpg", "2007_000032"),
        ("JPEGImages\\2007_000032.jpg", "2007_000032"),
        ("  2007_000032\t", "2007_000032"),
        ("JPEGImages/2007_000032.jpg SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("/JPEGImages/2007_000032.jpg\t/SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("JPEGImages/2007_000032.jpg,SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("2007_000032.jpg, SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("train/0001TP_006810", "train/0001TP_006810"),
        ("train/0001TP_006810.jpg", "train/0001TP_006810"),
        ("my photo", "my photo"),
        ("my photo.jpg", "my photo"),
        ("my photo 2", "my photo 2"),
        ("my photo SegmentationClassAug/2007_000032.png", "my photo"),
        ("x.y", "x.y"),
        ("x.y.jpg", "x.y"),
        ("My Photo.JPG", "my photo"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
    ],
)
def test_every_way_to_write_an_id(catalog, line, name):
    assert names_in(line, catalog) == [name]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """A folder of two images and a mask in the current folder; `images` leads to another disk, `link` to the folder."""
    for name in ("disk/a.jpg", "disk/sub/b.jpg", "photos/masks/a.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos/images").symlink_to("../disk")
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("root", ["photos", "{}/photos", "link", "{}/link", "photos/../photos", "{}/link/../photos"])
@pytest.mark.parametrize("line", ["photos", "{}/photos", "./photos", "{}/link", "link", "{}/disk/../photos"])
def test_paths_on_this_machine_whatever_leads_to_the_root(photos, root, line):
    root, line = Path(root.format(photos)), line.format(photos)
    catalog = Catalog(root, [Sample(name, root / f"images/{name}.jpg") for name in ("a", "sub/b")])
    (photos / "list.txt").write_text(f"{line}/images/sub/b.jpg\n{line}/images/a.jpg\t{line}/masks/a.png\n")
    first, second = read_list(photos / "list.txt", catalog, True, "data.labeled")
    assert [first.name, second.name] == ["sub/b", "a"]
    assert second.mask.samefile("photos/masks/a.png")
    for mask in (f"{line}/../secret.png", "secret.png", f"{photos}/secret.png", "../secret.png"):
        (photos / "list.txt").write_text(f"{line}/images/a.jpg {mask}\n")
        with pytest.raises(UserError, match=r"no mask|leaves data\.root"):
            read_list(photos / "list.txt", catalog, True, "data.labeled")


def test_paths_behind_a_link_below_the_root_and_images_outside_of_it(photos):
    for folder in (Path("photos/images"), photos / "disk"):
        catalog = Catalog(Path("photos"), [Sample("a", folder / "a.jpg")])
        for line in (f"{photos}/disk/a.jpg", f"{photos}/photos/images/a.png", "disk/a", "a"):
            assert catalog.find(line) == list(catalog.samples)


def test_an_absolute_path_is_no_path_below_the_root(tmp_path):
    """Where the root contains a folder of its own name."""
    same = f"{tmp_path}/images/a".lstrip("/")
    outer, inner = (Sample(name, tmp_path / f"{name}.jpg") for name in ("images/a", same))
    assert Catalog(tmp_path, [outer, inner]).find(f"{tmp_path}/images/a.jpg") == [outer]


def test_a_backslash_can_be_part_of_a_name(tmp_path):
    sample = Sample("a\\b", tmp_path / "a\\b.jpg")
    assert Catalog(tmp_path, [sample]).find("a\\b") == [sample]


def test_no_mask_of_an_unlabeled_image_is_looked_for(catalog, tmp_path):
    lines = {"labeled": "2007_000032 SegmentationClassAug/2007_000032.png", "unlabeled": "2007_000033.jpg none.png"}
    for key, line in lines.items():
        (tmp_path / f"{key}.txt").write_text(line)
    config = DataConfig(layout="", root=tmp_path, labeled="labeled.txt", unlabeled="unlabeled.txt")
    given = read_lists(config, catalog, listed_masks=True)
    assert given.labeled[0].mask == tmp_path / "SegmentationClassAug/2007_000032.png"
    assert [sample.name for sample in given.unlabeled] == ["2007_000033"]
    (tmp_path / "unlabeled.txt").write_text("my photo 3.jpg\n")  # is not `my photo` with the mask `3.jpg`
    with pytest.raises(UserError, match=r"no image 'my photo 3\.jpg'"):
        read_lists(config, catalog, listed_masks=True)
    (tmp_path / "unlabeled.txt").write_text(lines["unlabeled"])
    with pytest.raises(UserError, match=r"no mask 'none\.png'"):
        read_lists(config.model_copy(update={"val": config.unlabeled, "unlabeled": None}), catalog, listed_masks=True)


def test_crlf_blank_lines_and_byte_order_mark(catalog):
    assert names_in("\ufeff2007_000033\r\n\r\n  \r\n2007_000032\r\n", catalog) == ["2007_000033", "2007_000032"]


@pytest.mark.parametrize(("listed", "folder"), [(True, "SegmentationClassAug"), (False, "own")])
def test_a_listed_mask_counts_only_where_it_should(catalog, tmp_path, listed, folder):
    path = tmp_path / "list.txt"
    path.write_text("JPEGImages/2007_000032.jpg SegmentationClassAug/2007_000032.png\n")
    (sample,) = read_list(path, catalog, listed, "data.labeled")
    assert sample.mask == tmp_path / folder / "2007_000032.png"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ("list.txt", "data.labeled is empty")),
        ("\n \n", ("list.txt", "data.labeled is empty")),
        ("2007_000032\n2007_000034\n", ("list.txt:2", "no image '2007_000034'", "did you mean '2007_00003")),
        ("JPEGImages/2007_000034.jpg a.png\n", ("list.txt:1", "2007_000034", "did you mean '2007_00003")),
        ("zzzzzz", ("list.txt:1", "no image 'zzzzzz'", "ids are paths below the image folder")),
        ("2007_000032\n\nJPEGImages/2007_000032.jpg", ("list.txt:3", "'2007_000032' is on line 1 already")),
        ("0001TP_006810", ("list.txt:1", "train/0001TP_006810", "test/0001TP_006810", "write the longer path")),
        ("../secret.jpg", ("list.txt:1", "leaves data.root")),
        ("2007_000032 ../../secret.png", ("list.txt:1", "leaves data.root")),
        ("2007_000032 masks/none.png", ("list.txt:1", "no mask 'masks/none.png'", "remove the second column")),
        ("2007_000032 /etc/hostname", ("list.txt:1", "no mask '/etc/hostname'")),
        ("2007_000032\n" + "a " * 5000, ("list.txt:2", "has 10000 characters", "one entry a line")),
        ("a\0b", ("list.txt:1", r"'a\x00b'")),
        ("2007_000032 a\0b", ("list.txt:1", r"'a\x00b'")),
        ("2007_000032 a\0/b", ("list.txt:1", r"'a\x00/b'")),
        ("2007_000032 " + "x" * 300, ("list.txt:1", "no mask 'xxx")),
        ("image,mask\n2007_000032", ("list.txt:1", "no image 'image,mask'", "no header")),
        ("/home/anna/photos/2007_000032.jpg", ("list.txt:1", "did you mean '2007_000032'?")),
        ("C:\\photos\\2007_000032.jpg", ("list.txt:1", "did you mean '2007_000032'?")),
    ],
)
def test_what_is_wrong_with_a_list(catalog, text, says):
    with pytest.raises(UserError) as caught:
        names_in(text, catalog)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00x"])
def test_a_list_that_cannot_be_read(catalog, tmp_path, content):
    path = tmp_path / "splits.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_list(path, catalog, True, "data.val")
    assert str(path) in str(caught.value)
    assert "data.val" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_a_size_that_is_none(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("2007_000032\n\n2007_000033\n")
    assert list(read_lines(path, "data.val", most=25)) == [(1, "2007_000032"), (3, "2007_000033")]
    with pytest.raises(UserError, match=r"list.txt: cannot be read as data.val \(more than 24 bytes\)"):
        list(read_lines(path, "data.val", most=24))


def samples(*names: str, masks: bool = True) -> tuple[Sample, ...]:
    return tuple(Sample(name, Path(name), Path(name) if masks else None) for name in names)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "val", "says"),
    [
        (samples("a", "b"), samples("b", "c"), samples("d"), ("data.labeled and data.unlabeled share 'b'", "leave")),
        (samples("a", "b"), samples("c"), samples("b"), ("data.labeled and data.val share 'b'",)),
        (samples("a"), samples("c", "d"), samples("d", "c"), ("data.unlabeled and data.val share 'd' (2 images",)),
        (samples("a", masks=False), samples("c"), samples("d"), ("data.labeled: 'a' has no mask", "the remedy")),
        (samples("a"), samples("c"), samples("d", "e", masks=False), ("data.val: 'd' has no mask (2 images",)),
        (samples("a"), samples("c"), (), ("data.val: no image",)),
        ((), samples("c"), samples("d"), ("data.labeled: no image",)),
    ],
)
def test_lists_that_make_no_dataset(labeled, unlabeled, val, says):
    with pytest.raises(UserError) as caught:
        assemble(labeled, unlabeled, val, CLASSES, MaskCoding(2), "the remedy")
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_unlabeled_images_need_no_mask_and_no_images_at_all():
    dataset = assemble(samples("a"), samples("b", masks=False), samples("c"), CLASSES, MaskCoding(2), "")
    assert [sample.name for sample in dataset.unlabeled] == ["b"]
    assert assemble(samples("a"), (), samples("c"), CLASSES, MaskCoding(2), "").unlabeled == ()


def test_rest_leaves_out_what_is_taken():
    assert rest(samples("a", "b", "c"), samples("b"), None, samples("z")) == samples("a", "c")


def test_scan_finds_images_at_every_depth_and_nothing_else(tmp_path):
    for name in ["b.JPG", "a/c.tiff", "a/.hidden.png", "notes.txt", "a/d.e.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(scan(tmp_path).images) == ["a/c", "a/d.e", "b"]


def test_scan_follows_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    assert list(scan(tmp_path / "images").images) == ["linked/a"]


def test_scan_enters_a_folder_once(tmp_path):
    """By its own name, whatever links lead to it and in whatever circles."""
    (tmp_path / "images/z/deep").mkdir(parents=True)
    (tmp_path / "images/z/deep/a.png").touch()
    (tmp_path / "images/b.png").touch()
    for number in range(12):  # followed without care, 12 ** 40 paths
        (tmp_path / f"images/{number}").symlink_to(tmp_path / "images")
        (tmp_path / f"images/z/{number}").symlink_to("../z/deep")
    assert list(scan(tmp_path / "images").images) == ["b", "z/deep/a"]
    (tmp_path / "linked").symlink_to("images")
    assert list(scan(tmp_path / "linked").images) == ["b", "z/deep/a"]


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31m", "\x7f", "\x85", "\u2028", "\udcff", "folder\n/a"])
def test_scan_refuses_names_that_no_list_can_hold(tmp_path, name):
    (tmp_path / f"{name}.png").parent.mkdir(exist_ok=True)
    (tmp_path / f"{name}.png").touch()
    with pytest.raises(UserError, match="rename it"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["a\u202fb", "写真\u3000一", "[bold]x", ":smile:", "a b", "e\u0301", "\N{DUCK}"])
def test_scan_takes_every_other_name(tmp_path, name):
    (tmp_path / f"{name}.png").touch()
    assert list(scan(tmp_path).images) == [name]


def test_a_name_comes_before_an_ending(tmp_path):
    samples = [Sample(name, tmp_path / f"images/{name}.jpg") for name in ("a", "train/a", "images/a")]
    catalog = Catalog(tmp_path, samples)
    assert catalog.find("a") == [samples[0]]
    assert catalog.find("train/a.jpg") == [samples[1]]
    assert catalog.find("images/a") == [samples[2]]
    assert catalog.find("images/images/a") == [samples[2]]


def test_scan_refuses_two_images_of_one_name(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="has the same name as a"):
        scan(tmp_path)
