import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from semiseg.engine import checkpoint
from semiseg.errors import UserError
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable(("sky", "tree"), ((1, 2, 3), (4, 5, 6)), background=1)
NORMALIZATION = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
MODEL = {"student.weight": torch.arange(6.0).view(2, 3), "bank": torch.tensor([1, 2])}
OPTIMIZER = {"student.weight.momentum_buffer": torch.ones(2, 3)}


def save(folder: Path, step: int = 3, **changes) -> Path:
    values = {"recipe": {"engine": {"steps": 9}}, "classes": CLASSES, "normalization": NORMALIZATION}
    values |= {"predictor": ["student"], "model": MODEL}
    return checkpoint.save(folder, step=step, **(values | {"optimizer": OPTIMIZER} | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read(tmp_path):
    path = save(tmp_path, scaler={"scale": 2.0})
    read = checkpoint.newest(tmp_path)
    assert read == checkpoint.read(path)
    assert (read.path, read.step, read.recipe) == (path, 3, {"engine": {"steps": 9}})
    assert (read.classes, read.normalization, read.scaler) == (CLASSES, NORMALIZATION, {"scale": 2.0})
    for saved, given in ((read.model_state(), MODEL), (read.optimizer_state(), OPTIMIZER)):
        assert saved.keys() == given.keys()
        assert all(torch.equal(saved[key], given[key]) and saved[key].dtype == given[key].dtype for key in given)


def test_nothing_in_it_can_be_executed(tmp_path):
    path = save(tmp_path)
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    json.loads((path / "state.json").read_text())
    for file in path.glob("*.safetensors"):
        load_file(file)
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(file.read_bytes())


def test_layout_in_memory_is_no_matter(tmp_path):
    weight = torch.rand(2, 3, 4, 4)
    save(tmp_path, model={"weight": weight.to(memory_format=torch.channels_last)})
    assert torch.equal(checkpoint.newest(tmp_path).model_state()["weight"], weight)


def test_best_has_no_optimizer(tmp_path):
    path = save(tmp_path, optimizer=None)
    assert path.name == "best-00000003"
    assert names(path) == ["model.safetensors", "state.json"]
    assert checkpoint.newest(tmp_path) is None  # it cannot be resumed from
    assert checkpoint.newest(tmp_path, "best").step == 3


def test_newest(tmp_path):
    assert checkpoint.newest(tmp_path / "nothing") is None
    for step in (900, 1000, 20):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path).step == 1000


def test_prune_keeps_multiples(tmp_path):
    for step in (3, 4, 6, 7, 9):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"best-{step:08d}").mkdir()
    checkpoint.prune(tmp_path, 1, every=3)
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["3", "6", "9"]
    assert [path.name[-1] for path in tmp_path.glob("best-*")] == ["9"]


def test_prune_keeps_the_newest_and_one_best(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
        save(tmp_path, step, optimizer=None)
    checkpoint.prune(tmp_path, 2)
    assert names(tmp_path) == ["best-00000010", "step-00000003", "step-00000010"]
    checkpoint.prune(tmp_path, 2)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("call", [1, 2])
def test_half_a_checkpoint_is_never_taken(tmp_path, monkeypatch, call):
    save(tmp_path, 1)
    calls = []

    def interrupted(tensors, file):
        calls.append(file)
        Path(file).write_bytes(b"half")
        if len(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert checkpoint.newest(tmp_path).step == 1
    save(tmp_path, 2)  # what is left of the first attempt is no obstacle
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert torch.equal(checkpoint.newest(tmp_path).model_state()["bank"], MODEL["bank"])


def test_a_checkpoint_that_is_there_is_never_touched(tmp_path):
    """Replacing it would leave a moment without any."""
    path = save(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert save(tmp_path) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_rewind_drops_what_an_interruption_left(tmp_path):
    for step in (3, 5):
        save(tmp_path, step)
        save(tmp_path, step, optimizer=None)
    (tmp_path / ".step-00000004.tmp").mkdir()
    (tmp_path / ".step-00000004.tmp" / "model.safetensors").touch()
    checkpoint.rewind(tmp_path, 4)
    assert names(tmp_path) == ["best-00000003", "step-00000003", "step-00000005"]


def test_the_network_that_is_used_alone(tmp_path):
    teacher, method = nn.Linear(2, 3), nn.ModuleDict({"student": nn.Linear(2, 3), "teacher": nn.Linear(2, 3)})
    read = checkpoint.read(save(tmp_path, predictor=["teacher", "student"], model=method.state_dict()))
    assert read.predictor == ["teacher", "student"]
    for name in ("student", "teacher"):
        read.load_predictor(teacher, name)
        assert torch.equal(teacher.weight, method[name].weight)
    for other in (nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 3))):
        with pytest.raises(UserError, match=r"step-00000003: its tensors are not those .*, e.g. \S+$"):
            read.load_predictor(other, "teacher")
    with pytest.raises(UserError, match="its tensors are not those"):
        read.load_model(nn.ModuleDict({"student": nn.Linear(2, 3)}))


def broken(path: Path, **changes) -> str:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({k: v for k, v in (state | changes).items() if v is not None}))
    with pytest.raises(UserError) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_format(tmp_path):
    path = save(tmp_path)
    assert broken(path, format=7) == f"{path}: is a checkpoint of format 7; this semiseg reads format 4"


@pytest.mark.parametrize(
    "missing", ["format", "step", "recipe", "classes", "normalization", "predictor", "scaler", "pending"]
)
def test_a_state_that_lacks_something(tmp_path, missing):
    path = save(tmp_path)
    message = broken(path, **{missing: None})
    assert message.startswith(f"{path}: is not a readable checkpoint")
    assert missing in message


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3"])
def test_a_state_that_is_none(tmp_path, content):
    path = save(tmp_path)
    (path / "state.json").unlink()
    if content is not None:
        (path / "state.json").write_text(content)
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}      "[:10]])
def test_tensors_that_cannot_be_read(tmp_path, content):
    path = save(tmp_path)
    file = path / "model.safetensors"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read") as caught:
        checkpoint.read(path).model_state()
    assert "\n" not in str(caught.value)
