"""The quality of pseudo-labels is measured beside the scores, and changes nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from semiseg import api, data
from semiseg.data.loader import EvalItem
from semiseg.engine import pseudo_quality
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.models.build import Network, Undivided
from semiseg.recipe.engine import EvaluateConfig
from semiseg.recipe.load import validate
from semiseg.types import IGNORE, Normalization


class Gray(nn.Module):
    """Gives class 1 the probability that is the gray level of the pixel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([(1 - image[:, 0]).log(), image[:, 0].log()], 1)


def test_by_hand():
    """Of eight pixels one is void. Confidences .6, .6, .75, .75, .85, .96, .96; .6 and .85 are wrong."""
    level = torch.tensor([[0.4, 0.6, 0.75, 0.25], [0.15, 0.96, 0.04, 0.99]])
    mask = torch.tensor([[0, 0, 1, 0], [1, 1, 0, IGNORE]], dtype=torch.uint8)
    image = (level * 255).round().to(torch.uint8).expand(3, 2, 4)
    network = Network(Undivided(Gray()), Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1)
    items = [EvalItem(0, image, mask)]
    found = pseudo_quality.measure([network], items, 2, EvaluateConfig(), Runtime("cpu"))
    assert found["thresholds"] == [0.0, 0.5, 0.7, 0.8, 0.9, 0.95]
    assert found["kept"] == [1, 1, pytest.approx(5 / 7, abs=1e-4), *[pytest.approx(n / 7, abs=1e-4) for n in (3, 2, 2)]]
    assert found["accuracy"] == [pytest.approx(value, abs=1e-4) for value in (5 / 7, 5 / 7, 4 / 5, 2 / 3, 1, 1)]
    # predicted 0: .4, .25, .15 (wrong), .04; predicted 1: .6 (wrong), .75, .96
    assert found["precision"][0] == [0.75, pytest.approx(2 / 3, abs=1e-4)]
    assert found["recall"][0] == [0.75, pytest.approx(2 / 3, abs=1e-4)]
    assert found["precision"][3] == [0.5, 1]  # .15 (wrong) and .04; .96
    assert found["recall"][3] == [0.25, pytest.approx(1 / 3, abs=1e-4)]


def test_a_class_without_pixels_has_no_value():
    found = pseudo_quality.qualities(torch.tensor([[[3, 0], [0, 0]]]))
    assert (found["precision"], found["recall"]) == ([[1.0, None]], [[1.0, None]])


def test_each_evaluation_measures_and_training_does_not_change(recipe, tmp_path, monkeypatch):
    plain = validate(recipe(), "recipe")
    dataset = data.load(plain.data)
    masked = replace(dataset, unlabeled=tuple(replace(one, mask=dataset.labeled[0].mask) for one in dataset.unlabeled))
    monkeypatch.setattr(data, "load", lambda config: masked)
    runs = {
        number: api.train(plain, tmp_path / str(number), [f"engine.pseudo_label_images={number}"]) for number in (0, 3)
    }
    scores, measured = runs[0].metrics("val"), runs[3].metrics("val")
    assert [record.pop("pseudo_labels")["kept"][0] for record in measured] == [1.0] * len(scores)
    assert measured == scores
    losses = [[record["loss"] for record in run.metrics("train")] for run in runs.values()]
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) for loss in losses[0])


def test_images_are_spread_over_the_list_and_masks_are_needed(recipe):
    dataset = data.load(validate(recipe(), "recipe").data)
    every = tuple(replace(dataset.labeled[0], name=str(number)) for number in range(10))
    chosen = pseudo_quality.samples(replace(dataset, unlabeled=every), 4)
    assert [sample.name for sample in chosen] == ["0", "2", "5", "7"]
    assert len(pseudo_quality.samples(replace(dataset, unlabeled=every), 99)) == 10
    bare = tuple(replace(sample, mask=None) for sample in every)
    assert pseudo_quality.samples(replace(dataset, unlabeled=bare), 0) == ()
    with pytest.raises(UserError, match=r"^engine\.pseudo_label_images: no unlabeled image has a mask"):
        pseudo_quality.samples(replace(dataset, unlabeled=bare), 4)
