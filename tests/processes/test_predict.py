"""Several processes share the images of a prediction; the first one writes the summaries."""

from pathlib import Path

import pytest

KINDS = ["masks", "overlays", "coco", "labelme", "areas"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_write_what_one_writes(processes, trained, scenes, tmp_path):
    """14 images of the folder: 7 for each process. Then the same command goes on, and predicts nothing."""
    images, found = str(scenes / "images" / "train"), {}
    for count in (1, 2):
        out = tmp_path / str(count) / "masks"
        values = {"run": str(trained), "images": images, "out": str(out), "write": KINDS}
        group = processes(count, "predictions", **values)
        assert [(ended.code, ended.err) for ended in group] == [(0, "")] * count
        assert [len(ended.found) for ended in group] == [14 // count] * count
        again = processes(count, "predictions", **values)
        assert [(ended.code, ended.found) for ended in again] == [(0, [])] * count
        found[count] = contents(out)
    assert found[1] == found[2]
    assert {"areas.csv", "coco.json", "classes.png", "0000.png", "0013_overlay.png"} <= {*found[1]}
    assert len(found[1]["areas.csv"].splitlines()) == 1 + 14 * 6  # six classes


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_cannot_read_is_told_once(processes, trained, scenes, tmp_path, rank):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.png").write_bytes((scenes / f"images/val/000{number}.png").read_bytes())
    (photos / f"{rank}.png").write_bytes(b"no image")
    command = ["predict", str(trained), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]
    group = processes(2, "command", arguments=command, patience=0.1)
    assert [ended.code for ended in group] == [2, 2]
    assert f"1 of 4 images cannot be read; the other 3 were written to {tmp_path}/out" in group[0].err
    assert group[0].err.count("\n") == 1
    assert len(list((tmp_path / "out").iterdir())) == 7
