import pytest
import torch

from semiseg.models.threshold import GlobalThreshold, class_maxima

# two images: class 0 with 0.6 and 0.9, class 2 with 0.5; class 1 with 1.0, but padded
LABEL = torch.tensor([[[0, 1]], [[0, 2]]])
CONFIDENCE = torch.tensor([[[0.6, 1.0]], [[0.9, 0.5]]])
VALID = torch.tensor([[[True, False]], [[True, True]]])


def test_the_largest_confidence_of_each_predicted_class():
    assert class_maxima(LABEL, CONFIDENCE, VALID, 4).tolist() == pytest.approx([0.9, 0, 0.5, 0])


def test_the_threshold_moves_towards_the_mean_over_predicted_classes():
    threshold = GlobalThreshold(0.85, decay=0.9)
    threshold.update(LABEL, CONFIDENCE, VALID, 4)
    assert threshold.value.item() == pytest.approx(0.9 * 0.85 + 0.1 * 0.7)  # (0.9 + 0.5) / 2
    threshold.update(LABEL, CONFIDENCE, VALID, 4)
    assert threshold.value.item() == pytest.approx(0.9 * 0.835 + 0.1 * 0.7)


def test_without_valid_pixels_the_threshold_stays():
    threshold = GlobalThreshold(0.85, decay=0.9)
    threshold.update(LABEL, CONFIDENCE, torch.zeros_like(VALID), 4)
    assert threshold.value == torch.tensor(0.85)


def test_the_threshold_is_in_the_state_and_the_host_does_not_wait(no_host_sync):
    threshold = GlobalThreshold(0.85, decay=0.9)
    assert list(threshold.state_dict()) == ["value"]
    no_host_sync(lambda one, *seen: one.update(*seen, 4), threshold, LABEL, CONFIDENCE, VALID)
