"""Every test runs with the shapes and the types in semiseg's annotations checked by beartype."""

import copy
import hashlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_jaxtyped = jaxtyping.jaxtyped


def _checked(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """What jaxtyping's import hook does to each function and class, as a decorator.

    Where annotations have no shapes, beartype is enough: jaxtyping itself would take a fifth of the time of all tests.
    """

    def checked(defined: Any) -> Any:
        annotations = getattr(defined, "__annotations__", {}).values()
        if any("jaxtyping." in repr(annotation) for annotation in annotations):
            return _jaxtyped(defined, typechecker=typechecker)
        if isinstance(defined, type):
            if is_dataclass(defined) and "__init__" in vars(defined):
                defined.__init__ = beartype(defined.__init__)
            return defined
        inner = "<locals>" in defined.__qualname__  # defined again at each call of a function: too slow
        return defined if inner else beartype(defined)

    return checked


jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("semiseg", "beartype.beartype")

hypothesis.settings.register_profile("semiseg", hypothesis.settings(deadline=None))  # a busy machine is no bug
hypothesis.settings.load_profile("semiseg")


class _NoHostSync(TorchDispatchMode):
    """Fails where the host would wait for an accelerator: values asked for, sizes that depend on them, copies back."""

    waits = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    may_wait = (torch.ops.aten.index,)  # waits for boolean masks only, and asks for their nonzero() then

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        source = any(tensor.is_meta for tensor in tensors)
        if source and func.overloadpacket not in self.may_wait:
            assert not any(tag in func.tags for tag in self.waits), f"{func} makes the host wait for the device"
        if func is torch.ops.aten._to_copy.default and (device := kwargs.get("device")):
            assert not (source and device.type == "cpu"), f"{func} copies from the device to the host"
            assert source or device.type == "cpu" or kwargs.get("non_blocking"), f"{func} waits until it has copied"
        if func is torch.ops.aten.copy_.default:
            assert args[0].is_meta or not args[1].is_meta, f"{func} copies from the device to the host"
        return func(*args, **kwargs)


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to("meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_to_meta(item) for item in value)
    if is_dataclass(value):
        return type(value)(**{name: _to_meta(item) for name, item in vars(value).items()})
    return value


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the check of the data remembers is not written into the user's cache folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """A test that takes random numbers of torch takes the same ones alone as after other tests."""
    torch.manual_seed(0)  # noqa: TID251 - for random numbers without a generator


@pytest.fixture(scope="session")
def interrupted() -> Callable[[str, int], AbstractContextManager[None]]:
    """`with interrupted("module.function", 4):` is left by a KeyboardInterrupt in place of the fourth call."""

    @contextmanager
    def interrupted(where: str, call: int) -> Iterator[None]:
        place, _, name = where.rpartition(".")
        try:
            owner = importlib.import_module(place)
        except ModuleNotFoundError:  # a method
            module, _, kind = place.rpartition(".")
            owner = getattr(importlib.import_module(module), kind)
        function, calls = getattr(owner, name), 0

        def stopping(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted


@pytest.fixture
def no_host_sync() -> Callable[..., Any]:
    """no_host_sync(function, *args) -> what it returns on the meta device, where waiting for the device is an error.

    The meta device is an accelerator that every machine has: its tensors have shapes and no values.
    """

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        on_device = [_to_meta(value) for value in (*args, *kwargs.values())]
        with _NoHostSync():
            return function(*on_device[: len(args)], **dict(zip(kwargs, on_device[len(args) :], strict=True)))

    return call


class Encoder(nn.Sequential):
    """An encoder with a single feature map."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [super().forward(image)]


class Decoder(nn.Module):
    """A decoder that takes the last feature map as it is, or normalizes it."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.norm(maps[-1])


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """tiny(seed) -> a network of two convolutions, sure enough of itself for pseudo-labels.

    With norm=False it has no batch norm, so that images do not influence each other. With size=1 pixels do not either.
    With norm="everywhere" the decoder has it, too.
    """
    from semiseg.models.build import Network
    from semiseg.rng import seeded
    from semiseg.types import Normalization

    def tiny(seed: int = 0, norm: bool | str = True, num_classes: int = 3, channels: int = 3, size: int = 3) -> Network:
        with seeded(seed, "tiny"):
            conv = nn.Conv2d(channels, 8, size, padding=size // 2)
            encoder = Encoder(conv, *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU())
            decoder = Decoder(nn.BatchNorm2d(8) if norm == "everywhere" else None)
            head = nn.Conv2d(8, num_classes, 1)
        with torch.no_grad():
            head.weight *= 4
        net = nn.ModuleDict({"encoder": encoder, "decoder": decoder, "segmentation_head": head})
        return Network(net, Normalization(), 1)

    return tiny


@pytest.fixture
def another_process_in() -> Callable[[Path], AbstractContextManager[int]]:
    """`with another_process_in(folder) as pid`: another process has locked the folder inside, and is killed then."""

    @contextmanager
    def another_process_in(folder: Path) -> Iterator[int]:
        program = "import sys; from pathlib import Path; from semiseg.engine.lock import Lock, Run; "
        program += f"Lock(Run(Path({str(folder)!r}))).acquire(); print(flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            try:
                yield other.pid
            finally:
                other.kill()

    return another_process_in


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes of 32 px in the plain layout: 6 labeled, 8 unlabeled, 4 for validation. Not to be changed."""
    from semiseg.scenes import write_scenes

    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, num_train=14, num_val=4, size=32, seed=0, labeled=6)
    return root


@pytest.fixture(scope="session")
def pseudo(scenes: Path) -> Path:
    """A folder of pseudo-labels of the unlabeled scenes, 2 classes in stripes. Not to be changed."""
    folder = scenes.parent / "pseudo"
    for number, name in enumerate((scenes / "splits/unlabeled.txt").read_text().split()):
        mask = np.repeat(np.arange(32, dtype=np.uint8)[None] // 16, 32, 0)
        mask[: number + 1] = 2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def recipe(scenes: Path, pseudo: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """recipe("imas", engine={"steps": 2}) -> plain values of a recipe for `scenes` that trains in a second."""

    def recipe(method: str = "imas", /, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
        # fast, and a teacher that is easily sure: hardness varies and unlabeled images count from the first steps on
        settings: dict[str, Any] = {
            "imas": {"threshold": 0.3, "ema_decay": 0.5},
            "eln": {"pixels": 32},
            "u2pl": {"channels": 16, "pixels": 200, "anchors": 16, "negatives": 8, "bank_size": 100},
        }.get(method, {})
        lists = {name: f"splits/{name}.txt" for name in ("labeled", "unlabeled", "val")}
        values: dict[str, dict[str, Any]] = {
            "data": {
                "layout": "folder",
                "root": str(scenes),
                "background": "ground",
                "crop": 32,
                "workers": 0,
                **lists,
            },
            "model": {
                "architecture": "unet",
                "encoder": "tu-test_efficientnet",
                "weights": None,
                "options": {"decoder_channels": [32, 24, 16, 8, 8]},
            },
            "method": {"name": method, **settings},
            "optim": {"lr": 0.2, "head_lr_factor": 2},
            "engine": {
                "steps": 4,
                "batch_size": 2,
                "precision": "fp32",  # on every kind of CPU
                "log_every": 2,
                "eval_every": 2,
                "save_every": 2,
                "trackers": [],  # tests of trackers use them; the others need not wait for them
            },
        }
        if method == "st_pp":
            values["data"]["pseudo"] = str(pseudo)
        for section, changes in sections.items():
            values[section] |= changes
        return values

    return recipe


@pytest.fixture(scope="session")
def trained(recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a complete run of iMAS, 4 steps. Not to be changed."""
    from semiseg import api
    from semiseg.recipe.load import validate

    return api.train(validate(recipe(), "recipe"), tmp_path_factory.mktemp("runs") / "trained").path


def _contents(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, and a digest of what it holds."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """contents(folder) -> {path: digest} of everything below it."""
    return _contents
