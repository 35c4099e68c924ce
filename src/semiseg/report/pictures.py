"""The index of the pictures that an evaluation has put into the run directory."""

from pydantic import BaseModel, ConfigDict, ValidationError

from semiseg.errors import UserError
from semiseg.runs import Run


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Network(_Strict):
    """What was measured of a network: its confusion matrix, labels in rows."""

    confusion: list[list[int]]


class Picture(_Strict):
    """A validation image: names of its files, of its mask and of predictions by network; whether it is a worst one."""

    name: str
    worst: bool
    image: str
    truth: str
    predictions: dict[str, str]
    miou: dict[str, float]


class Unlabeled(_Strict):
    """An unlabeled image with its hardness."""

    name: str
    image: str
    hardness: float


class Pictures(_Strict):
    """The pictures of one evaluation, after `step` completed steps."""

    step: int
    networks: dict[str, Network]
    images: list[Picture]
    unlabeled: list[Unlabeled]


def read(run: Run) -> Pictures | None:
    """Reads the index of a run; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    index = run.pictures_index()
    if index is None:
        return None
    try:
        return Pictures.model_validate(index)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{run.pictures / 'index.json'}: is damaged ({place}: {first['msg']}); delete the folder pictures for a "
            "report without them"
        ) from error
