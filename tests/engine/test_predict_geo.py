"""Masks of georeferenced TIFFs lie where their images lie."""

import numpy as np
import pytest
from PIL import Image

from semiseg.engine.predict_files import Options, geo, loop, predict_files, raster
from semiseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # of rasterio
CORNER = (500000.0, 4100000.0)


@pytest.fixture
def tile(tmp_path, flag):
    """A georeferenced TIFF of 30x20 px, half a meter each: red, blue, black."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    from rasterio.transform import from_origin

    with Image.open(flag("flag.png")) as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    path = tmp_path / "tiles" / "a.tif"
    path.parent.mkdir()
    place = {"crs": "EPSG:32633", "transform": from_origin(*CORNER, 0.5, 0.5)}
    with rasterio.open(path, "w", driver="GTiff", width=30, height=20, count=3, dtype="uint8", **place) as file:
        file.write(pixels)
    return path


def test_the_mask_has_the_same_place(tile, model, tmp_path):
    import rasterio

    out = tmp_path / "out"
    assert predict_files(model, tile.parent, out) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a.tif", "a_overlay.png", "classes.png"]
    with rasterio.open(tile) as image, rasterio.open(out / "a.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape) == (image.crs, image.transform, image.shape)
        assert mask.transform * (0, 0) == CORNER
        assert mask.read(1)[3, [3, 13, 23]].tolist() == [1, 2, 0]
        assert mask.colormap(1)[2][:3] == (0, 0, 251)


@pytest.mark.parametrize(("count", "dtype"), [(3, "uint16"), (4, "uint16"), (5, "uint8")])
def test_bands_without_colors(tile, model, tmp_path, count, dtype):
    import rasterio

    with rasterio.open(tile) as image:
        pixels, layout = image.read().astype(dtype), image.profile
    pixels = np.concatenate([pixels * (257 if dtype == "uint16" else 1), pixels])[:count]
    with rasterio.open(tile, "w", **layout | {"count": count, "dtype": dtype, "photometric": "MINISBLACK"}) as file:
        file.write(pixels)
    predict_files(model, tile, tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        assert mask.crs == layout["crs"]
        assert mask.read(1)[3, [3, 13, 23]].tolist() == [1, 2, 0]


def test_the_mask_has_the_same_control_points(tile, model, tmp_path):
    """They say where an image lies that has no transform, e.g. of a radar satellite."""
    import rasterio
    from rasterio.control import GroundControlPoint

    corners = [
        GroundControlPoint(row, column, 10 + column / 99, 50 - row / 99) for row in (0, 20) for column in (0, 30)
    ]
    layout = {"driver": "GTiff", "width": 30, "height": 20, "count": 3, "dtype": "uint8"}
    with rasterio.open(tile) as image:
        pixels = image.read()
    with rasterio.open(tile, "w", **layout, gcps=corners, crs="EPSG:4326") as file:
        file.write(pixels)
    predict_files(model, tile.parent, tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        points, crs = mask.gcps
        assert crs == "EPSG:4326"
        assert [(one.row, one.col, one.x, one.y) for one in points] == [(p.row, p.col, p.x, p.y) for p in corners]


@pytest.mark.parametrize("suffix", [".tfw", ".TFW", ".wld"])
def test_the_mask_has_the_place_that_a_world_file_says(tile, model, tmp_path, suffix):
    """Aerial photographs often come with one. Its last two numbers are the middle of the first pixel."""
    import rasterio

    with Image.open(tile) as image:
        image.convert("RGB").save(tile)
    world = tile.with_suffix(suffix)
    world.write_text("0.5\n0.0\n0.0\n-0.5\n500000.25\n4099999.75\n")
    assert raster.is_georeferenced(tile)
    predict_files(model, tile, tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        assert mask.transform * (0, 0) == CORNER
        assert mask.res == (0.5, 0.5)
    world.write_text("0.5 0.0")
    assert not raster.is_georeferenced(tile)


def test_marks_of_geotiffs(tile, color_model, tmp_path):
    import rasterio

    model, out = color_model(), tmp_path / "out"
    predict_files(model, tile, out)
    before = (out / "a.tif").read_bytes()
    predict_files(model, tile, out)
    assert len(model.seen) == 1
    with pytest.raises(UserError, match=r"a.tif: exists already, from another checkpoint"):
        predict_files(color_model(name=b"other"), tile, out)
    assert (out / "a.tif").read_bytes() == before
    with rasterio.open(out / "a.tif", "r+") as mask:  # corrected in a GIS, which keeps the mark
        label = mask.read(1)
        label[0, 0] = 2
        mask.write(label, 1)
    with pytest.raises(UserError, match=r"a.tif: exists already, and was changed after it was written"):
        predict_files(color_model(name=b"other"), tile, out, options=Options(overwrite=True))
    (out / "a.tif").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a.tif: exists already"):
        predict_files(model, tile, out, options=Options(overwrite=True))


def test_without_the_extra_it_is_told(tile, model, tmp_path, monkeypatch):
    for module in (geo, loop, raster):
        monkeypatch.setattr(module, "has_rasterio", lambda: False)
    geo.keeps.cache_clear()
    told = []
    predict_files(model, tile, tmp_path / "out", on_unused=told.append)
    assert (tmp_path / "out" / "a.png").exists()
    assert str(told[-1]) == (
        f'georeferenced TIFFs, whose masks will have no georeference: 1, {tile}; pip install "semiseg[geo]" keeps it'
    )
    geo.keeps.cache_clear()


def test_a_plain_tiff_has_a_png(model, flag, tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    predict_files(model, flag("a.tif"), tmp_path / "out")
    assert (tmp_path / "out" / "a.png").exists()
