"""Tests run with the annotations of semiseg checked."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from semiseg.augment.blend import blend
from semiseg.rng import fold_in
from semiseg.types import Prediction, Progress


def test_shapes_of_arguments_belong_together():
    weak, strong = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)
    with pytest.raises(TypeCheckError, match=r"blend"):
        blend(weak, strong, torch.ones(2))


def test_shapes_of_a_value_belong_together():
    label, confidence = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 5)
    with pytest.raises(TypeCheckError, match=r"Prediction"):
        Prediction(label, confidence, 3)


def test_types_are_checked_where_there_are_no_shapes():
    with pytest.raises(BeartypeCallHintParamViolation):
        fold_in("a seed")
    with pytest.raises(BeartypeCallHintParamViolation):
        Progress("a step", 10)
