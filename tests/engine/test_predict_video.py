"""Videos, frame by frame. They are drawn here."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg.engine.predict_files import Options, predict_files, video
from semiseg.errors import UserError


@pytest.fixture
def clip(tmp_path):
    """clip("a.mp4", 5) -> a video of 64x48 px; frame n is red on its left (n - 1) fifths, else blue."""
    av = pytest.importorskip("av", reason="needs the extra video")

    def clip(name: str, number: int = 5):
        path = tmp_path / "clips" / name
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
            for index in range(number):
                pixels = np.zeros((48, 64, 3), np.uint8)
                pixels[..., 2] = 255
                pixels[:, : 64 * index // number] = (255, 0, 0)
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return clip


def share_of_red(path) -> float:
    with Image.open(path) as mask:
        return float((np.asarray(mask) == 1).mean())


def test_frames(clip):
    path = clip("a.mp4")
    assert video.count_frames(path) == 5
    frames = list(video.frames(path))
    assert [frame.shape for frame in frames] == [torch.Size((3, 48, 64))] * 5
    assert [round((frame[0].float() / 255).mean().item(), 1) for frame in frames] == [0, 0.2, 0.4, 0.6, 0.8]


def test_each_frame_has_a_mask(clip, model, flag, tmp_path):
    clip("a.mp4")
    clip("b.avi", 2)
    out, counted = tmp_path / "out", []
    options = Options(("masks", "areas"))
    number = predict_files(model, tmp_path / "clips", out, lambda *count: counted.append(count), options=options)
    assert (number, counted) == (7, [(n, 7) for n in range(1, 8)])
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.png"))]
    assert names == [f"a/{n:06}.png" for n in range(1, 6)] + ["b/000001.png", "b/000002.png"]
    shares = [share_of_red(out / f"a/{n:06}.png") for n in range(1, 6)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.03)
    assert "a.mp4/000002,red," in (out / "areas.csv").read_text()


def test_a_video_goes_on(clip, model, tmp_path):
    path, out = clip("a.mp4"), tmp_path / "out"
    predict_files(model, path, out)
    before = {file: file.read_bytes() for file in out.rglob("*.png")}
    for number in (2, 4):
        (out / f"a/{number:06}.png").unlink()
    model.seen.clear()
    assert predict_files(model, path, out) == 5
    assert len(model.seen) == 2
    assert before == {file: file.read_bytes() for file in out.rglob("*.png")}


def test_what_is_wrong_with_a_video_is_one_line(clip, model, tmp_path, monkeypatch):
    path = clip("a.mp4")
    with pytest.raises(
        UserError, match=r"a.mp4: is a video, and --write labelme is about image files; save its frames"
    ):
        predict_files(model, path, tmp_path / "out", options=Options(("labelme",)))
    monkeypatch.setattr(video, "count_frames", lambda path: 7)
    with pytest.raises(
        UserError, match=r"2 of 7 images .*the other 5 were written .*: ends after frame 5, though its header has more$"
    ):
        predict_files(model, path, tmp_path / "out")
    monkeypatch.undo()
    path.write_bytes(b"no video at all")
    with pytest.raises(UserError, match=r"a.mp4: not a readable video"):
        predict_files(model, path, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_without_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    with pytest.raises(
        UserError, match=r'^.*a.mp4: is a video, which cannot be read here; pip install "semiseg\[video\]"$'
    ):
        predict_files(model, path, tmp_path / "out")
