"""The two predictors of a checkpoint that are compared: teacher and student, or two networks of equal rank."""

from dataclasses import replace

from torch import Tensor

from semiseg.engine.checkpoint import Checkpoint
from semiseg.engine.predict import Predictor, make_predictor
from semiseg.recipe.engine import Device


def make_pair(source: Checkpoint, device: Device) -> tuple[Predictor, Predictor | None]:
    """Makes the predictor of a checkpoint, and one of its other segmentation networks.

    The other networks are those whose tensors have the names and shapes of the predictor's: the student if the teacher
    predicts, the second network of CPS. Of several the mean probability counts. Modules of the method are not imported.

    Returns:
        The predictor, and the other one; None if the checkpoint has one network only.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    others = other_networks(source.model_state(), source.predictor)
    predictor = make_predictor(source, device)
    return predictor, make_predictor(replace(source, predictor=others), device) if others else None


def other_networks(state: dict[str, Tensor], used: list[str]) -> list[str]:
    """Returns the names of networks with the same tensors as the first of `used`, without those in `used`."""
    depth = used[0].count(".") + 1
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, value in state.items():
        words = key.split(".")
        parts.setdefault(".".join(words[:depth]), {})[".".join(words[depth:])] = tuple(value.shape)
    return [name for name, own in parts.items() if name not in used and own == parts.get(used[0])]
