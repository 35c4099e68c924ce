import pytest
import torch

from semiseg.models.confidence import ClassConfidence, class_sums, true_class_probability
from semiseg.rng import fold_in
from semiseg.types import IGNORE


def test_the_probability_of_the_label_in_eval_mode(tiny):
    network = tiny().train()
    image = torch.randn(2, 3, 4, 5, generator=fold_in(0, "image"))
    label = torch.randint(3, (2, 4, 5), generator=fold_in(0, "label"))
    label[0, 0] = IGNORE
    statistics = network.net["encoder"][1].running_mean.clone()
    found = true_class_probability(network, image, label)
    assert network.training
    assert network.net["encoder"][1].training
    assert torch.equal(network.net["encoder"][1].running_mean, statistics)
    assert not found.requires_grad
    wanted = network.eval()(image).softmax(1)
    for i in range(2):
        for y in range(4):
            for x in range(5):
                own = 1.0 if label[i, y, x] == IGNORE else wanted[i, label[i, y, x], y, x].item()
                assert found[i, y, x].item() == pytest.approx(own, rel=1e-4)


def test_images_and_not_pixels_have_equal_weight():
    bank = ClassConfidence(3, decay=0.5)
    total, count = torch.tensor([[0.9, 0.0, 0.0], [3.0, 0.2, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [10.0, 1.0, 0.0]])
    bank.update(total, count)
    torch.testing.assert_close(bank.value, torch.tensor([(0.9 + 0.3) / 2, 0.2, 0.0]))
    assert bank.updates.tolist() == [1, 1, 0]


def test_the_plain_mean_becomes_a_moving_average_and_unseen_classes_stay():
    bank = ClassConfidence(2, decay=0.75)
    wanted, seen = 0.0, [0.2, 0.6, 1.0, 0.4, 0.0, 0.8]
    for number, value in enumerate(seen):
        bank.update(torch.tensor([[value, 0.0]]), torch.tensor([[1.0, 0.0]]))
        bank.update(torch.zeros(1, 2), torch.zeros(1, 2))  # a step without labels changes nothing
        wanted += max(1 / (number + 1), 0.25) * (value - wanted)
        assert bank.value[0].item() == pytest.approx(wanted)
        if number < 4:
            assert wanted == pytest.approx(sum(seen[: number + 1]) / (number + 1))
    assert bank.value[1] == 0  # its start


def test_classes_are_drawn_by_their_need():
    bank = ClassConfidence(4)
    bank.value.copy_(torch.tensor([0.9, 0.1, 0.5, 0.0]))
    uniform = torch.rand(20, 1000, generator=fold_in(0, "draw"))
    share = torch.bincount(bank.draw(uniform).flatten(), minlength=4) / uniform.numel()
    torch.testing.assert_close(share, (1 - bank.value).softmax(0), atol=0.01, rtol=0)
    allowed = torch.tensor([True, False, True, False])
    share = torch.bincount(bank.draw(uniform, allowed).flatten(), minlength=4) / uniform.numel()
    wanted = torch.tensor([0.1, 0.5]).softmax(0)
    torch.testing.assert_close(share, torch.tensor([wanted[0], 0.0, wanted[1], 0.0]), atol=0.01, rtol=0)
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert bank.draw(ends, allowed).tolist() == [0, 2]
    assert bank.draw(ends, ~allowed).tolist() == [1, 3]


def test_sampling_rates():
    bank = ClassConfidence(3)
    assert bank.sampling_rate(1.0).tolist() == [1, 1, 1]  # nothing is known yet
    bank.value.copy_(torch.tensor([0.2, 0.6, 0.9]))
    torch.testing.assert_close(bank.sampling_rate(1.0), torch.tensor([1.0, 0.5, 0.125]))
    torch.testing.assert_close(bank.sampling_rate(2.0), torch.tensor([1.0, 0.25, 0.125**2]))
    assert bank.sampling_rate(0.0).tolist() == [1, 1, 1]
    bank.value.fill_(1.0)
    assert torch.isfinite(bank.sampling_rate(1.0)).all()


def test_sums_of_a_part_are_those_of_its_images():
    label = torch.randint(4, (3, 5, 6), generator=fold_in(0, "label"))
    label[label == 3] = IGNORE
    value = torch.rand(3, 5, 6, generator=fold_in(0, "value"))
    found = class_sums(value, label, 4)
    for i in range(3):
        wanted = [value[i][label[i] == c].sum().item() for c in range(4)]
        assert found[i].tolist() == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(class_sums(value[1:2], label[1:2], 4), found[1:2])
