import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from torch import nn

from semiseg import api
from semiseg.engine import onnx_export
from semiseg.engine.evaluate import mean_probabilities
from semiseg.engine.exported import DESCRIPTION, load, read
from semiseg.engine.onnx_network import OnnxNetwork
from semiseg.engine.predict import Predictor
from semiseg.errors import UserError
from semiseg.models.build import Config, build
from semiseg.recipe.engine import EvaluateConfig
from semiseg.recipe.load import validate
from semiseg.rng import fold_in, seeded

FILES = ["README.md", "config.json", "model.onnx", "model.safetensors", "semiseg.json"]


def image(height: int, width: int, number: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=fold_in(0, "image"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    """A run of 2 steps with a long side, windows and white of its own."""
    values = recipe(
        "imas",
        data={"long_side": 40, "white": 4095},
        engine={"steps": 2, "evaluate": {"mode": "sliding", "window": 32, "stride": 16}},
    )
    return api.train(validate(values, "recipe"), tmp_path_factory.mktemp("export") / "run").path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """Its best checkpoint, exported with ONNX. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "network"
    api.export(run, folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return api.load(run, device="cpu")


# what is written


def test_smp_loads_the_folder(exported, predictor):
    assert names(exported) == FILES
    network = smp.from_pretrained(exported).eval()
    pixels = torch.rand(2, 3, 64, 96, generator=fold_in(0, "pixels"))
    with torch.no_grad():
        assert (network(pixels) - predictor.networks[0](pixels)).abs().max() < 1e-5
    assert json.loads((exported / "config.json").read_text())["encoder_weights"] is None  # nothing is downloaded
    modes = {(exported / name).stat().st_mode for name in FILES}
    assert len(modes) == 1, "who may read one file may read all"


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 33, 77), (1, 1, 5), (2, 130, 31)])
def test_onnx_computes_the_probabilities_of_images_of_any_size(exported, predictor, size):
    """It pads inside: none of the sides but 64 is a multiple of the stride."""
    number, height, width = size
    assert predictor.networks[0].stride == 32
    batch = image(height, width, number)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (found,) = session.run(["probability"], {"image": batch.numpy()})
    expected = mean_probabilities(predictor.networks, batch, EvaluateConfig())
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (number, 6, height, width)
    assert np.abs(found - expected.numpy()).max() < 1e-4


def test_the_description_says_how_to_use_the_network(exported, run, predictor):
    about = read(exported)
    assert json.loads((exported / DESCRIPTION).read_text()) == about.model_dump(mode="json")
    assert about.classes.table() == predictor.classes
    assert (about.input.long_side, about.input.white, about.input.evaluate.window) == (40, 4095, 32)
    assert about.input.normalization() == predictor.networks[0].normalization
    assert (about.step, about.run["checkpoint"], about.run["method"]) == (predictor.step, "best", "imas")
    assert about.run["labels"]["labeled"] == 6
    assert about.run["best"]["miou"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["miou"]
    (measured,) = about.onnx.values()
    assert measured["compared_on"] == "3 validation images"
    assert 0 < measured["largest_difference"] < 1e-4
    graph = onnx.load(exported / "model.onnx")
    assert [one.version for one in graph.opset_import] == [onnx_export.OPSET]
    assert {one.key: one.value for one in graph.metadata_props}["semiseg"] == (exported / DESCRIPTION).read_text()


def test_the_last_checkpoint(run, tmp_path):
    about = api.export(run, tmp_path / "out", "last", onnx=False)
    assert (about.run["checkpoint"], about.step, about.onnx) == ("last", 2, {})
    assert names(tmp_path / "out") == [name for name in FILES if name != "model.onnx"]
    assert "onnx" not in (tmp_path / "out" / "README.md").read_text()


def test_lower_precisions_and_what_they_cost(run, tmp_path, monkeypatch):
    """Of fp32 the mIoU is that of the run, because it is measured on all validation images, as `evaluate` does."""
    about = api.export(run, tmp_path / "out", lower=["fp16", "int8", "fp16"])
    assert names(tmp_path / "out") == sorted([*FILES, "model-fp16.onnx", "model-int8.onnx"])
    assert list(about.onnx) == ["model.onnx", "model-fp16.onnx", "model-int8.onnx"]
    assert [one["precision"] for one in about.onnx.values()] == ["fp32", "fp16", "int8"]
    full, half, eighth = about.onnx.values()
    assert full["miou"] == pytest.approx(api.evaluate(run, "best").miou, abs=1e-4)
    assert full["largest_difference"] < half["largest_difference"] < 0.01
    assert half["largest_difference"] < eighth["largest_difference"] < 0.5
    assert {one["miou_images"] for one in about.onnx.values()} == {4}
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model-int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    stored = {one.data_type for one in onnx.load(tmp_path / "out" / "model-fp16.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in stored
    card = (tmp_path / "out" / "README.md").read_text()
    for name, one in about.onnx.items():
        assert re.search(rf"\| {name} \|.*\| {100 * one['miou']:.2f} \|", card)
    for name in about.onnx:
        assert api.load(tmp_path / "out" / name).predict(image(20, 30)[0]).shape == (20, 30)


def test_of_several_networks_the_mean_probability(recipe, tmp_path):
    """No method of today has such a predictor; the state of this checkpoint names two."""
    values = recipe("cps", engine={"steps": 1, "eval_every": 1, "save_every": 1})
    run = api.train(validate(values, "recipe"), tmp_path / "run").path
    (state,) = run.glob("checkpoints/best-*/state.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"predictor": ["first", "second"]}))
    predictor = api.load(run, device="cpu")
    assert len(predictor.networks) == 2
    about = api.export(run, tmp_path / "out")
    assert about.networks == ["network-1", "network-2"]
    assert names(tmp_path / "out") == ["README.md", "model.onnx", "network-1", "network-2", "semiseg.json"]
    batch = image(33, 50)
    expected = mean_probabilities(predictor.networks, batch, EvaluateConfig())
    for loaded in (api.load(tmp_path / "out", device="cpu"), api.load(tmp_path / "out" / "model.onnx")):
        assert (mean_probabilities(loaded.networks, batch, EvaluateConfig()) - expected).abs().max() < 1e-4
    for one, name in zip(predictor.networks, about.networks, strict=True):
        assert names(tmp_path / "out" / name) == ["config.json", "model.safetensors"]
        pixels = torch.rand(1, 3, 64, 64, generator=fold_in(0))
        with torch.no_grad():
            found = smp.from_pretrained(tmp_path / "out" / name).eval()(pixels)
            assert (found - one(pixels)).abs().max() < 1e-5


def test_the_code_in_the_card_works(exported, predictor, tmp_path, monkeypatch):
    """Each block ends with the label of each pixel, at the size for evaluation. Phones store photographs turned."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "FOLDER")
    photo = image(50, 73)[0]
    Path("photos").mkdir()
    for path in ("photo.jpg", "photos/a.png"):
        stored = Image.fromarray(photo.permute(1, 2, 0).numpy()).transpose(Image.Transpose.ROTATE_90)
        stored.getexif()[ExifTags.Base.Orientation] = 6  # to be turned clockwise
        stored.save(path, exif=stored.getexif(), quality=100)
    blocks = re.findall(r"^```python\n(.*?)^```$", Path("FOLDER/README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    labels = []
    for block in blocks:
        assert len(block.strip().splitlines()) <= 16
        scope: dict[str, object] = {"__name__": "card"}
        exec(compile(block, "README.md", "exec"), scope)
        labels += [np.asarray(scope["label"])] if "label" in scope else []
    by_onnx, by_smp = labels
    assert by_onnx.shape == (27, 40)
    assert (by_onnx == by_smp).mean() > 0.99
    with Image.open("masks/a.png") as mask:
        assert mask.size == (73, 50)


def test_the_head_of_the_card_is_yaml_with_a_license_to_fill_in(exported):
    _, head, body = (exported / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] is None
    assert fields["pipeline_tag"] == "image-segmentation"
    assert "| labeled images | 6 |" in body


# what is not written


def test_an_interrupted_export_leaves_nothing(run, tmp_path, interrupted):
    with interrupted("semiseg.engine.onnx_export.write", 1):
        api.export(run, tmp_path / "new" / "out")
    assert names(tmp_path) == []


def test_the_difference_to_pytorch_is_a_condition(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"unet with encoder tu-test_efficientnet as ONNX differs .* by \d") as error:
        api.export(run, tmp_path / "out")
    assert "--no-onnx" in one_line(error)
    assert names(tmp_path) == []


def test_nothing_is_overwritten(run, copy, tmp_path):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match=r"copy: exists already; .*--overwrite"):
        api.export(run, copy)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"mine: is no exported network"):
        api.export(run, tmp_path / "mine", overwrite=True)
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"copy: holds files that no export wrote, e.g. notes.txt"):
        api.export(run, copy, overwrite=True)
    (copy / "notes.txt").unlink()
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
    assert names(tmp_path) == ["copy", "mine"]


def test_an_earlier_export_is_replaced_as_a_whole_or_not_at_all(run, copy, tmp_path, interrupted):
    with interrupted("semiseg.report.card.text", 1):
        api.export(run, copy, "last", onnx=False, overwrite=True)
    assert names(copy) == FILES
    api.export(run, copy, "last", onnx=False, overwrite=True)
    assert "model.onnx" not in names(copy)
    assert names(tmp_path) == ["copy"]


def test_an_earlier_export_comes_back_if_the_new_one_cannot_take_its_place(run, copy, tmp_path, monkeypatch):
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".copy.tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match=r"copy: cannot be written \(No space left on device\)"):
        api.export(run, copy, "last", onnx=False, overwrite=True)
    assert names(copy) == FILES
    assert names(tmp_path) == ["copy"]


def test_an_export_that_was_killed_between_two_renames_is_found_again(run, copy, tmp_path):
    copy.rename(tmp_path / ".copy.old")
    api.export(run, copy, "last", onnx=False, overwrite=True)
    assert names(tmp_path) == ["copy"]


def test_what_cannot_be_exported(run, tmp_path, monkeypatch):
    def refused(match: str, *args, **kwargs) -> None:
        with pytest.raises(UserError, match=match) as error:
            api.export(*args, **kwargs)
        one_line(error)
        assert names(tmp_path) == before

    (tmp_path / "file").write_text("")
    before = names(tmp_path)
    out = tmp_path / "out"
    refused("is not a run directory", tmp_path, out)
    refused("there is no 'worst'", run, out, "worst")
    refused("is a file", run, tmp_path / "file")
    refused(r"--precision: there is no 'fp8'", run, out, lower=["fp8"])
    refused(r"--precision int8: is of ONNX files", run, out, onnx=False, lower=["int8"])
    refused(r"--set data.root=.*: without ONNX no image is read", run, out, onnx=False, overrides=["data.root=x"])
    refused(r"has no effect on an export", run, out, overrides=["engine.steps=3"])
    refused(r"nowhere", run, out, overrides=["data.root=nowhere"])
    monkeypatch.setattr("os.access", lambda *args: False)
    refused(r"out: cannot be written \(no permission for ", run, out)


def test_a_run_without_a_checkpoint(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("best-*"))
    command = f"go on with the training: semiseg train {copy}/config.yaml --out {copy}$"
    with pytest.raises(UserError, match=f"^{copy}: has no best checkpoint yet; use --checkpoint last, or {command}"):
        api.export(copy, tmp_path / "out")
    shutil.rmtree(copy / "checkpoints")
    for which in ("best", "last"):
        with pytest.raises(UserError, match=f"^{copy}: has no checkpoint yet; {command}"):
            api.export(copy, tmp_path / "out", which)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(run, exported, tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf'needs the package {package}: pip install "semiseg\[export\]"'):
        api.export(run, tmp_path / "out")
    assert names(tmp_path) == []
    api.export(run, tmp_path / "out", onnx=False)
    if package == "onnxruntime":
        with pytest.raises(UserError, match=r'pip install "semiseg\[export\]"'):
            load(exported / "model.onnx")


def test_without_the_photographs_of_the_run_drawn_images_are_compared(run, tmp_path, scenes):
    moved = shutil.copytree(run, tmp_path / "run")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(scenes), str(tmp_path / "gone")))
    about = api.export(moved, tmp_path / "out")
    assert about.onnx["model.onnx"]["compared_on"] == "3 drawn images"
    with pytest.raises(UserError, match=r"--precision fp16: its cost is measured on .*gone.*data.root=PATH") as error:
        api.export(moved, tmp_path / "other", lower=["fp16"])
    one_line(error)
    found = api.export(moved, tmp_path / "other", lower=["fp16"], overrides=[f"data.root={scenes}"])
    assert found.onnx["model.onnx"]["compared_on"] == "3 validation images"


# networks as ONNX


SMALL_VIT = {
    "patch_size": 16,
    "dynamic_img_size": True,
    "embed_dim": 24,
    "num_heads": 2,
    "decoder_intermediate_channels": [8, 8, 8, 8],
    "decoder_fusion_channels": 8,
}


ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted({*smp.MODEL_ARCHITECTURES_MAPPING} - {"dpt"})),
    ("fpn", {"encoder_depth": 3}),  # its logits have another size than the image
]


@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_architectures(architecture, options, tmp_path, capfd):
    config = Config(architecture=architecture, encoder="tu-test_efficientnet", weights=None, options=options)
    with seeded(0):
        network = build(config, 3)
    network.eval().requires_grad_(False)
    file = tmp_path / "model.onnx"
    onnx_export.write([network], file, False, architecture)
    assert onnx_export.largest_difference([network], file, [image(70, 150)[0]], architecture) < 1e-4
    assert capfd.readouterr() == ("", "")


def test_an_architecture_that_onnx_does_not_have(tmp_path, capfd):
    with seeded(0):
        vit = Config(architecture="dpt", encoder="tu-vit_small_patch14_dinov2", weights=None, options=SMALL_VIT)
        network = build(vit, 3)
    with pytest.raises(UserError, match=r"model: DPT cannot be exported as ONNX \(.*\); use --no-onnx") as error:
        onnx_export.write([network.eval()], tmp_path / "model.onnx", False, "DPT")
    one_line(error)
    assert capfd.readouterr() == ("", ""), "torch prints the graph"


@pytest.mark.parametrize("size", [1, 2, 3, 6, (2, 5)])
@pytest.mark.parametrize("side", [(6, 6), (7, 13), (3, 1)])
def test_grid_pool_is_adaptive_average_pooling(size, side):
    value = torch.rand(2, 4, *side, generator=fold_in(0, "pool"))
    assert torch.allclose(onnx_export.GridPool(size)(value), nn.AdaptiveAvgPool2d(size)(value), atol=1e-6)


# use


def same(one: Predictor, other: Predictor) -> None:
    for name in ("classes", "long_side", "evaluate", "step", "white"):
        assert getattr(one, name) == getattr(other, name)


def test_a_folder_predicts_what_the_run_predicts(exported, predictor):
    loaded = api.load(exported, device="cpu")
    same(loaded, predictor)
    assert torch.equal(loaded.predict(image(50, 73)[0]), predictor.predict(image(50, 73)[0]))
    assert loaded.fingerprint() == predictor.fingerprint()  # an interrupted prediction goes on with either


def test_an_onnx_file_alone_predicts_what_the_run_predicts(exported, predictor, tmp_path):
    alone = shutil.copy(exported / "model.onnx", tmp_path / "Other.ONNX")
    loaded = api.load(alone)
    same(loaded, predictor)
    (network,) = loaded.networks
    assert isinstance(network, OnnxNetwork)
    assert (network.stride, network.smallest) == (predictor.networks[0].stride, predictor.networks[0].smallest)
    batch = image(50, 73)
    for config in (EvaluateConfig(), predictor.evaluate):  # whole, and in windows
        expected = mean_probabilities(predictor.networks, batch, config)
        assert (mean_probabilities(loaded.networks, batch, config) - expected).abs().max() < 1e-4
    assert (loaded.predict(batch[0]) == predictor.predict(batch[0])).float().mean() > 0.99
    assert loaded.fingerprint() == api.load(exported / "model.onnx").fingerprint()


def test_other_weights_make_another_predictor(exported, run, tmp_path):
    api.export(run, tmp_path / "out", "last")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    changed = {key: value + 0.01 if value.is_floating_point() else value for key, value in weights.items()}
    loaded = api.load(tmp_path / "out")
    save_file(changed, tmp_path / "out" / "model.safetensors")
    assert api.load(tmp_path / "out").fingerprint() != loaded.fingerprint()
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    first = api.load(tmp_path / "out" / "model.onnx").fingerprint()
    graph.producer_name = "other"
    onnx.save(graph, tmp_path / "out" / "model.onnx")
    assert api.load(tmp_path / "out" / "model.onnx").fingerprint() != first


def test_exported_networks_have_no_checkpoints(exported):
    for path in (exported, exported / "model.onnx"):
        with pytest.raises(UserError, match=r"--checkpoint last: .* is exported"):
            api.load(path, "last")


def test_onnxruntime_refuses_devices_that_it_does_not_have(exported, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"onnxruntime cannot use {device} here"):
            load(exported / "model.onnx", device)


# files from somebody else


def changed(key: str, value: object) -> Callable[[Path], None]:
    """Sets a value of semiseg.json, e.g. of "classes.colors"; None removes it."""

    def change(folder: Path) -> None:
        values = node = json.loads((folder / DESCRIPTION).read_text())
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[last]
        else:
            node[last] = value
        (folder / DESCRIPTION).write_text(json.dumps(values))

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


BAD = {
    "no JSON": (text(DESCRIPTION, "{"), "semiseg.json: is damaged"),
    "no object": (text(DESCRIPTION, "[]"), "semiseg.json: is no description"),
    "nested": (text(DESCRIPTION, "[" * 100_000), "semiseg.json: is damaged"),
    "no text": (text(DESCRIPTION, b"\xff\xfe\xff"), "semiseg.json: cannot be read"),
    "huge": (text(DESCRIPTION, b" " * (2**24 + 1)), "semiseg.json: cannot be read"),
    "another format": (changed("format", 2), "semiseg.json: has format 2; this semiseg reads format 1"),
    "a long format": (changed("format", "x" * 10_000), "semiseg.json: has format"),
    "a missing key": (changed("input", None), r"semiseg.json: .*\(input: Field required\)"),
    "an unknown key": (changed("python", "import os"), r"\(python: Extra inputs"),
    "no classes": (changed("classes.names", []), r"\(classes.names: "),
    "too few colors": (changed("classes.colors", [[0, 0, 0]]), "6 names have 1 colors"),
    "no color": (changed("classes.colors", [[0, 0, 300]] * 6), r"\(classes.colors.0.2: "),
    "another background": (changed("classes.background", 6), "background 6 is none of the 6 classes"),
    "a normalization by 0": (changed("input.std", [1, 1, 0]), r"\(input.std.2: "),
    "windows without a size": (changed("input.evaluate", {"mode": "sliding"}), r"\(input.evaluate: "),
    "a network elsewhere": (changed("networks", ["../other"]), r"\(networks.0: "),
    "an unknown architecture": (changed("model.architecture", "vgg"), "there is no 'vgg'"),
    "another network": (changed("model.options", {"decoder_channels": [8] * 5}), "tensors are not those"),
    "other classes": (
        lambda folder: [
            changed("classes.names", ["a", "b"])(folder),
            changed("classes.colors", [[0, 0, 0]] * 2)(folder),
        ],
        "tensors are not those",
    ),
    "weights that are damaged": (text("model.safetensors", b"x" * 100), "model.safetensors: cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_folders(case, copy):
    damage, says = BAD[case]
    damage(copy)
    with pytest.raises(UserError, match=says) as error:
        api.load(copy)
    assert len(one_line(error)) < 500


def remade(**changes: object) -> bytes:
    """An ONNX file that copies its input."""
    values = {"input": "image", "output": "probability", "kind": onnx.TensorProto.FLOAT, "channels": 3} | changes
    shape = ["n", values["channels"], "h", "w"]
    ends = [onnx.helper.make_tensor_value_info(values[end], values["kind"], shape) for end in ("input", "output")]
    node = onnx.helper.make_node("Identity", [values["input"]], [values["output"]])
    graph = onnx.helper.make_graph([node], "graph", [ends[0]], [ends[1]])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no ONNX file that onnxruntime can read"),
        (b"x" * 100, "is no ONNX file that onnxruntime can read"),
        (remade(), "its input or its output are not those"),
        (remade(input="x"), "its input or its output are not those"),
    ],
)
def test_other_onnx_files(content, says, tmp_path):
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        api.load(tmp_path / "other.onnx")
    one_line(error)


def test_an_onnx_file_without_its_description(copy):
    graph = onnx.load(copy / "model.onnx")
    values = json.loads(graph.metadata_props[0].value)
    for props, says in (
        ({}, "has no description of semiseg"),
        ({"semiseg": "{"}, "is damaged"),
        (
            {"semiseg": json.dumps(values | {"classes": {"names": ["a"], "colors": [[0, 0, 0]], "background": None}})},
            "has 6 outputs, and its description names 1 classes",
        ),
    ):
        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, props)
        onnx.save(graph, copy / "model.onnx")
        with pytest.raises(UserError, match=says) as error:
            api.load(copy / "model.onnx")
        assert "model.onnx: " in one_line(error)
    with pytest.raises(UserError, match=r"none\.onnx: there is no such file"):
        api.load(copy / "none.onnx")


def test_weights_in_other_files_are_not_read(copy):
    """An ONNX file may name a file with its weights, which could be any file of the user."""
    graph = onnx.load(copy / "model.onnx")
    onnx.save(graph, copy / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (copy / "weights.bin").is_file()
    with pytest.raises(UserError, match="is no ONNX file that onnxruntime can read") as error:
        api.load(copy / "model.onnx")
    one_line(error)
