import math

import torch

from semiseg.models.correlation import CorrelationHead, propagate, regions, spread

T, F = True, False
LABEL = torch.tensor([[1, 1, 0, 2], [1, 2, 0, 2]])
CONFIDENT = torch.tensor([[T, T, T, F], [T, F, F, F]])
LEFT = torch.tensor([[T, T, F, F], [T, T, F, F]])  # 3 of 4 pixels are confident, all of class 1
RIGHT = ~LEFT  # 1 of 4 pixels is confident
MIDDLE = torch.tensor([[F, T, T, F], [F, F, F, F]])  # both pixels are confident, of classes 1 and 0
NONE = torch.zeros_like(LEFT)


def of(threshold: float, *region: torch.Tensor, label=LABEL, confident=CONFIDENT):
    return propagate(torch.stack(region), label, confident, torch.tensor(threshold), 3)


def test_a_region_that_is_sure_of_one_class_gets_its_label():
    label, spreads = of(0.7, LEFT, RIGHT, MIDDLE, NONE)
    assert label.tolist() == [[1, 1, 0, 2], [1, 1, 0, 2]]  # below on the left: 1, not 2
    assert torch.equal(spreads, CONFIDENT | LEFT)


def test_the_confident_share_may_equal_the_threshold_and_the_agreement_must_exceed_it():
    label, spreads = of(0.75, LEFT)
    assert torch.equal(spreads, CONFIDENT | LEFT)
    label, spreads = of(0.76, LEFT)
    assert torch.equal(label, LABEL)
    assert torch.equal(spreads, CONFIDENT)
    everywhere = torch.ones_like(LEFT)
    two_of_eight = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 2]])  # 6 of 8 agree
    for threshold, same in ((0.75, True), (0.74, False)):
        label, spreads = of(threshold, everywhere, label=two_of_eight, confident=everywhere)
        assert torch.equal(label, two_of_eight) == same
        assert spreads.all()
    assert label.tolist() == [[1] * 4] * 2  # confident pixels are overruled, too


def test_of_regions_that_overlap_the_last_one_counts():
    top, left = torch.tensor([[T, T, T, T], [F, F, F, F]]), torch.tensor([[T, F, F, F], [T, F, F, F]])
    label = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]])
    confident = torch.tensor([[F, T, T, T], [T, F, F, F]])
    assert of(0.5, top, left, label=label, confident=confident)[0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]
    assert of(0.5, left, top, label=label, confident=confident)[0].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_a_region_is_what_lies_above_the_middle_of_the_values_inside():
    value = torch.tensor([[[0.0, 0.25, 0.375], [0.4375, 0.5, 1.0]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]])
    inside = torch.tensor([[F, T, T], [T, T, F]])
    region = regions(value, inside, torch.tensor([T, T]))
    assert region[0].tolist() == [[F, F, F], [T, T, F]]  # above the middle of 0.25 and 0.5, which is 0.375
    assert not region[1].any()  # all values are the same
    assert not regions(value, inside, torch.tensor([F, F])).any()
    assert not regions(value, torch.zeros_like(inside), torch.tensor([T, T])).any()


@torch.no_grad()
def test_the_correlation_is_a_softmax_over_the_counted_cells(tiny):
    head = CorrelationHead(tiny(0, norm=False), 3, 5)
    value, counted = torch.randn(2, 8, 2, 3), torch.ones(2, 2, 3, dtype=torch.bool)
    counted[0, 1, 1:] = False
    correlation = head(value, counted)
    projected = head.project(torch.where(counted[:, None], value, 0.0))
    query, key = head.query(projected).flatten(2), head.key(projected).flatten(2)
    for image in range(2):
        cells = [j for j in range(6) if counted[image].flatten()[j]]
        for i in range(6):
            weight = {j: math.exp(query[image, :, i] @ key[image, :, j] / math.sqrt(3)) for j in cells}
            wanted = torch.tensor([weight.get(j, 0.0) / sum(weight.values()) for j in range(6)])
            torch.testing.assert_close(correlation[image, i], wanted)


def test_cells_that_do_not_count_change_nothing(tiny):
    head = CorrelationHead(tiny(0, norm=False), 3, 5)
    value, counted = torch.randn(1, 8, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    counted[0, :, 2] = False
    logits, other = torch.randn(1, 3, 3, 4), torch.randn(1, 3, 3, 4)
    one = spread(head(value, counted), logits, counted)
    changed = torch.where(counted[:, None], value, 9.0)
    two = spread(head(changed, counted), torch.where(counted[:, None], logits, other), counted)
    assert torch.equal(one, two)
    assert (one[..., 2] == 0).all()
    nothing = head(value, torch.zeros_like(counted))
    assert torch.isfinite(nothing).all()


def test_logits_are_spread_by_rows():
    """Three cells with logits 4, 8 and 1; the last one does not count."""
    correlation = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]])
    found = spread(correlation, torch.tensor([4.0, 8.0, 1.0]).view(1, 1, 1, 3), torch.tensor([[[T, T, F]]]))
    assert found.flatten().tolist() == [4.0, 8.0, 0.0]  # 2 + 2, 2 + 6


def test_a_head_has_batch_norm_if_the_network_has(tiny):
    for norm in (False, True):
        head = CorrelationHead(tiny(0, norm=norm), 3, 5)
        assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in head.modules()) == norm
