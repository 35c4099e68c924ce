"""Reads exported networks: a folder that `semiseg export` made, or one of its ONNX files alone.

Both carry a description as JSON: `semiseg.json` in the folder, the entry `semiseg` among the metadata of an ONNX file.
Weights are safetensors or ONNX. So loading executes no code from the files, even if they come from somebody else.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from semiseg.data.dataset import Channel, LongSide, White
from semiseg.engine.onnx_network import OnnxNetwork
from semiseg.engine.predict import Predictor
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError, first_line
from semiseg.files import read_text
from semiseg.models import build
from semiseg.models.build import Network
from semiseg.recipe.engine import Device, EvaluateConfig
from semiseg.recipe.folders import OF_EXPORTED
from semiseg.rng import seeded
from semiseg.types import ClassTable, Normalization

FORMAT = 1
DESCRIPTION = OF_EXPORTED
WEIGHTS = "model.safetensors"
_LARGEST = 2**24  # bytes of a description
_Values = Annotated[list[float], Field(min_length=3, max_length=3)]


class Classes(BaseModel):
    """The classes of an exported network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str] = Field(min_length=1, max_length=254)
    colors: list[tuple[Channel, Channel, Channel]]
    background: int | None = Field(ge=0)

    @model_validator(mode="after")
    def _belong_together(self) -> "Classes":
        if len(self.colors) != len(self.names):
            raise ValueError(f"{len(self.names)} names have {len(self.colors)} colors")
        if self.background is not None and self.background >= len(self.names):
            raise ValueError(f"background {self.background} is none of the {len(self.names)} classes")
        return self

    def table(self) -> ClassTable:
        """Returns the class table."""
        return ClassTable(tuple(self.names), tuple(self.colors), self.background)


class Input(BaseModel):
    """How an image becomes the input of an exported network.

    Attributes:
        long_side: images are first resized to this long side, px; None: they are not resized.
        white: the value that is shown as white in images of more than 8 bits; None: 65535.
        evaluate: whole image or sliding window.
        mean: of the normalization, for images in [0, 1].
        std: of the normalization.
        stride: px; sides are padded to a multiple of it. ONNX files do so themselves.
        smallest: px; smaller sides are padded to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    long_side: LongSide | None
    white: White | None
    evaluate: EvaluateConfig
    mean: _Values
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    stride: int = Field(ge=1, le=1024)
    smallest: int = Field(ge=1, le=16384)

    def normalization(self) -> Normalization:
        """Returns the normalization."""
        return Normalization((self.mean[0], self.mean[1], self.mean[2]), (self.std[0], self.std[1], self.std[2]))


class Description(BaseModel):
    """What `semiseg.json` says about an exported network.

    Attributes:
        format: version of this description.
        semiseg: version of the semiseg that exported it.
        commit: commit of its checkout; None for an installed package.
        classes: the meaning of the outputs.
        input: what an image becomes before the network gets it.
        model: the model section of the recipe, without a source of weights.
        networks: folders of the networks, relative to the exported one; of several the mean probability counts.
        step: number of training steps.
        run: how the network was trained, for people: method, data, metrics.
        onnx: for each ONNX file how much it differs from PyTorch, and what its precision costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    semiseg: str
    commit: str | None
    classes: Classes
    input: Input
    model: build.Config
    networks: list[Annotated[str, Field(pattern=r"^(\.|network-[1-9][0-9]?)$")]] = Field(min_length=1)
    step: int = Field(ge=0)
    run: dict[str, Any]
    onnx: dict[str, dict[str, Any]] = {}

    def text(self) -> str:
        """Returns the description as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def is_exported(path: Path) -> bool:
    """Returns whether a path is that of an exported folder or of an ONNX file."""
    return path.suffix.lower() == ".onnx" or (path / DESCRIPTION).is_file()


def load(path: Path, device: Device = "auto") -> Predictor:
    """Makes a predictor from an exported folder, or from an ONNX file alone.

    Args:
        path: the folder, whose PyTorch weights are used, or the file.
        device: where to compute. An ONNX file is computed by onnxruntime: `auto` takes a GPU if onnxruntime has one.

    Raises:
        UserError: the path is neither, its files are damaged or do not fit together, or onnxruntime is missing.
    """
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, device)
    description = read(path)
    runtime = Runtime(device)
    networks = [_load_network(path, name, description).to(runtime.device) for name in description.networks]
    # in the memory layout of training, as `make_predictor` does: then predictions are those of the run to the last bit
    return _predictor(description, [one.to(memory_format=torch.channels_last) for one in networks], runtime)


def read(folder: Path) -> Description:
    """Reads the description of an exported folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(
            f"{folder}: is no exported network (it has no {DESCRIPTION}); name one that semiseg export made"
        )
    try:
        return parse(read_text(file, "a description", _LARGEST), str(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def parse(text: str, where: str) -> Description:
    """Checks a description. Error messages begin with `where`.

    Raises:
        UserError: it is no JSON, has another format, or a value is missing or wrong.
    """
    try:
        values = json.loads(text)
        if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
            raise UserError(f"{where}: has format {values['format']!r:.20}; this semiseg reads format {FORMAT}")
        return Description.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: is no description that semiseg export made ({key}: {first['msg']}); export again"
        ) from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is damaged ({first_line(error)}); export again") from error


def _load_network(folder: Path, name: str, description: Description) -> Network:
    file = folder / name / WEIGHTS
    with seeded(0, "predictor"):  # these weights are not used: all are replaced
        network = build.build(description.model.model_copy(update={"weights": None}), len(description.classes.names))
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); export again") from error
    own = {key: (value.shape, value.dtype) for key, value in network.net.state_dict().items()}
    if wrong := sorted(
        own.items() ^ {key: (value.shape, value.dtype) for key, value in state.items()}.items(), key=str
    ):
        raise UserError(
            f"{file}: its tensors are not those of the network in {DESCRIPTION}, e.g. {wrong[0][0]:.100}; export again"
        )
    network.net.load_state_dict(state)
    network.normalization = description.input.normalization()
    return network.eval().requires_grad_(False)


def _load_onnx(file: Path, device: Device) -> Predictor:
    network = OnnxNetwork(file, device)
    if network.description is None:
        raise UserError(
            f"{file}: has no description of semiseg among its metadata; name an ONNX file that semiseg export made"
        )
    description = parse(network.description, str(file))
    if network.num_classes != len(description.classes.names):
        raise UserError(
            f"{file}: has {network.num_classes} outputs, and its description names {len(description.classes.names)} "
            "classes; export again"
        )
    # it pads inside, but the smallest useful window depends on these two
    network.stride, network.smallest = description.input.stride, description.input.smallest
    return _predictor(description, [network], Runtime("cpu"))


def _predictor(description: Description, networks: list[Network], runtime: Runtime) -> Predictor:
    used = description.input
    return Predictor(
        networks=tuple(networks),
        classes=description.classes.table(),
        long_side=used.long_side,
        evaluate=used.evaluate,
        runtime=runtime,
        step=description.step,
        white=used.white,
    )
