"""Signs of trouble in records, and what is said about them."""

import pytest
import torch

from semiseg.engine.advice import advice, lost, untried
from semiseg.engine.pseudo_shares import shares
from semiseg.types import PseudoLabels

NAMES = ("sky", "pole")


def train(kept=0.5, pole=0.1, until=300, every=10):
    steps = range(every, until + 1, every)
    return [{"step": step, "confident": kept, "pseudo_shares": [0.4, pole]} for step in steps]


def val(*mious, iou=(0.5, 0.5)):
    return [{"step": 50 * number, "miou": miou, "iou": list(iou)} for number, miou in enumerate(mious, 1)]


def test_a_healthy_run_hears_nothing():
    assert advice(train(), val(0.3, 0.4, 0.5, 0.49, 0.5), 500, NAMES) == {}


@pytest.mark.parametrize(
    ("records", "sign", "text"),
    [
        (train(kept=0.001), "none kept", "steps 210 to 300: less than 0.2 % .*; lower method.threshold"),
        (train(kept=0.999), "all kept", "steps 210 to 300: more than 99 % .*; raise method.threshold"),
        (train(pole=0.0), "without pole", "pole: no confident pseudo-label since step 210"),
    ],
)
def test_pseudo_labels(records, sign, text):
    import re

    found = advice(records, val(0.3), 500, NAMES)
    assert list(found) == [sign]
    assert re.match(text, found[sign])
    assert advice(records, val(0.3), 2000, NAMES) == {}  # it is early
    assert advice(train(), val(0.3), 500, NAMES) == {}


def test_what_is_set_already_is_not_proposed():
    order, weights = "data.labeled_order=class_balanced", "method.labeled_loss.class_weights=inverse_sqrt"
    plain = {"data": {}, "method": {"name": "supervised"}}
    assert untried(plain) == [order, weights]
    assert untried(plain | {"data": {"labeled_order": "class_balanced"}}) == [weights]
    for loss in ({"class_weights": [1, 2]}, {"kind": "ohem"}):
        assert untried(plain | {"method": {"name": "supervised", "labeled_loss": loss}}) == [order]
    for left in ([], [order], [order, weights]):
        texts = [*advice(train(pole=0.0), val(0.3), 500, NAMES, left).values(), lost((0.9, 0.0), NAMES, left) or ""]
        for text in texts:
            assert [setting for setting in (order, weights) if setting in text] == left
            assert "label more images" in text


def test_a_sign_must_last():
    assert advice(train(kept=0.001)[:-1] + train(kept=0.3)[-1:], val(0.3), 500, NAMES) == {}
    assert advice(train(pole=0.0)[:-1] + train(pole=1e-6)[-1:], val(0.3), 500, NAMES) == {}


def test_a_class_that_no_validation_image_shows_is_not_missed():
    assert advice(train(pole=0.0), val(0.3, iou=(0.5, None)), 500, NAMES) == {}


def test_a_falling_miou():
    found = advice(train(), val(0.5, 0.6, 0.55, 0.52, 0.5), 500, NAMES)
    assert list(found) == ["falling"]
    assert found["falling"].startswith("mIoU was 60.0 at step 100 and is 50.0 now")
    assert advice(train(), val(0.5, 0.6, 0.55, 0.52), 500, NAMES) == {}  # two evaluations may be chance
    assert advice(train(), val(0.5, 0.6, 0.55, 0.59, 0.5), 500, NAMES) == {}


def test_a_supervised_run_has_no_pseudo_labels():
    records = [{"step": step} for step in range(10, 310, 10)]
    assert advice(records, val(0.3), 500, NAMES) == {}


def test_lost_classes():
    assert lost([0.5, None], NAMES) is None
    assert (lost([0.5, 0.009], NAMES) or "").startswith("1 of 2 classes is lost (IoU below 1 %): pole;")
    assert (lost([0.001, 0.009], NAMES) or "").startswith("2 of 2 classes are lost (IoU below 1 %): ")
    assert "pole" in (lost([0.5, 0.009], NAMES, pixels=[9, 1]) or "")
    assert lost([0.5, 0.0], NAMES, pixels=[9, 0]) is None  # no validation mask shows it: the network only predicts it


def test_shares_by_hand():
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[0, 0, 4] = 1  # rows and columns 0 and 4 are counted
    label[0, 1, 1] = 2
    confidence, valid = torch.full((1, 8, 8), 0.95), torch.ones(1, 8, 8, dtype=torch.bool)
    confidence[0, 4, 4] = 0.5
    valid[0, 4, 0] = False
    observed = PseudoLabels(torch.zeros(1, 3, 8, 8), label, confidence, valid)
    found = shares(observed, 0.9)
    assert found is not None
    assert found[:3].tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert shares(observed, None) is None
    assert shares("anything", 0.9) is None


def test_training_gives_each_advice_once(monkeypatch, tmp_path, recipe, capsys):
    """Also after it was resumed: the events of a run say what was said."""
    from rich.console import Console

    from semiseg import api
    from semiseg.engine import log
    from semiseg.recipe.load import validate

    seen = []

    def said(records, scores, steps, names, untried):
        seen.append([len(record["pseudo_shares"]) for record in records])
        return {"a sign": "what would help"}

    monkeypatch.setattr(log, "advice", said)
    values = recipe()
    values["method"] = {"name": "fixmatch", "threshold": 0.5}
    values["engine"] |= {"steps": 3, "eval_every": 1, "log_every": 1}
    run = api.train(validate(values, "test"), tmp_path / "run", console=Console(width=200))
    events = [event for event in run.events() if event["event"] == "advice"]
    assert [(event["step"], event["text"]) for event in events] == [(1, "what would help")]
    assert capsys.readouterr().out.count("note: what would help") == 1
    classes = len(run.environment()["classes"]["names"])
    assert seen[-1] == [classes] * 3
    assert all(0 <= sum(record["pseudo_shares"]) <= 1 for record in run.metrics("train"))
