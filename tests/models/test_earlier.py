import math
from collections import Counter

import pytest
import torch

from semiseg.models.earlier import EarlierNetworks, mixed, sample_mix, store_steps
from semiseg.rng import fold_in
from semiseg.types import Progress


def test_copies_are_made_ever_more_seldom():
    assert store_steps(3, 160) == [10, 40, 90]  # (1/4)^2, (2/4)^2, (3/4)^2 of the run
    assert store_steps(26, 8) == [1, 2, 3, 4, 5, 6, 7]  # a short run has fewer steps than that
    assert store_steps(1, 3) == []  # 3/4 of a step


def test_the_number_of_mixed_networks_is_uniform_and_they_differ():
    numbers, seen = Counter(), Counter()
    for step in range(3000):
        chosen, weights = sample_mix(fold_in(0, "mix", step), held=5, most=3)
        assert len(set(chosen)) == len(chosen) == len(weights)
        assert sum(weights) == pytest.approx(1)
        numbers[len(chosen)] += 1
        seen.update(chosen)
    assert set(numbers) == {1, 2, 3}
    assert all(abs(number / 3000 - 1 / 3) < 0.04 for number in numbers.values())
    assert set(seen) == set(range(5))
    assert all(abs(number / 6000 - 1 / 5) < 0.02 for number in seen.values())


def test_no_more_networks_are_mixed_than_there_are():
    numbers = [len(sample_mix(fold_in(0, "mix", step), held=2, most=3)[0]) for step in range(600)]
    assert set(numbers) == {1, 2}
    assert abs(numbers.count(2) / 600 - 2 / 3) < 0.07  # a draw of 2, or of 3
    assert sample_mix(fold_in(0, "mix"), held=1, most=3) == ([0], [1.0])


def test_the_weights_are_from_a_flat_dirichlet_distribution():
    """Of two networks: uniform in [0, 1]. Of three: mean 1/3, variance 1/18, covariance -1/36."""
    two, three = [], []
    for step in range(6000):
        weights = sample_mix(fold_in(0, "mix", step), held=3, most=3)[1]
        {1: [], 2: two, 3: three}[len(weights)].append(weights)
    first = torch.tensor(two)[:, 0]
    for share in (0.1, 0.25, 0.5, 0.9):
        assert first.quantile(share).item() == pytest.approx(share, abs=0.04)
    weight = torch.tensor(three)
    torch.testing.assert_close(weight.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    wanted = torch.full((3, 3), -1 / 36) + torch.eye(3) * (1 / 18 + 1 / 36)
    torch.testing.assert_close(weight.T.cov(), wanted, atol=0.005, rtol=0)


def constant(tiny, *logits: float) -> torch.nn.Module:
    """A network that computes these logits for every pixel."""
    network = tiny(0)
    with torch.no_grad():
        network.net["segmentation_head"].weight.zero_()
        network.net["segmentation_head"].bias.copy_(torch.tensor(logits))
    return network


def when(chosen: set[int], held: int, most: int = 3) -> Progress:
    """A step after all copies were made, in which these networks are mixed."""
    for seed in range(1000):
        at = Progress(900, 1000, seed=seed)
        if set(sample_mix(at.generator("earlier networks"), held, most)[0]) == chosen:
            return at
    raise AssertionError


def test_logits_are_mixed_not_probabilities(tiny):
    earlier = EarlierNetworks(tiny(0), size=2, stores=2, most=3)
    for copy, logits in zip(earlier.copies, [(4.0, 0.0, 0.0), (0.0, 6.0, 0.0)], strict=True):
        copy.load_state_dict(constant(tiny, *logits).state_dict())
    at = when({0, 1}, held=2)
    chosen, weights = sample_mix(at.generator("earlier networks"), 2, 3)
    of = dict(zip(chosen, weights, strict=True))
    first, second = 4 * of[0], 6 * of[1]
    predicted = earlier.predict(torch.rand(2, 3, 4, 5), at)
    assert (predicted.label == (0 if first > second else 1)).all()
    wanted = math.exp(max(first, second)) / (math.exp(first) + math.exp(second) + 1)
    torch.testing.assert_close(predicted.confidence, torch.full((2, 4, 5), wanted))


def test_a_mixture_by_hand():
    """Weights 1/4 and 3/4 of (8, 0) and (0, 4): (2, 3)."""
    first, second = torch.tensor([8.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 4.0]).view(1, 2, 1, 1)
    assert mixed([first, second], [0.25, 0.75]).flatten().tolist() == [2.0, 3.0]
    assert mixed([first.bfloat16()], [1.0]).dtype == torch.float32


def test_the_oldest_copy_is_replaced_and_only_at_the_steps_of_a_plan(tiny):
    earlier, network = EarlierNetworks(tiny(0), size=2, stores=3, most=3), tiny(1)
    bias, expected = network.net["segmentation_head"].bias, [None, None]
    norm = network.net["encoder"][1]
    for step in range(160):
        at = Progress(step, 160)
        held = sum(step >= stored for stored in (10, 40, 90))
        assert earlier.held(at) == min(2, held)
        with torch.no_grad():
            bias.fill_(step)  # the network after this step
            norm.running_mean.fill_(-step)
        earlier.store(network, at)
        if step + 1 in (10, 40, 90):
            expected[held % 2] = step
        for copy, when in zip(earlier.copies, expected, strict=True):
            if when is not None:
                assert (copy.net["segmentation_head"].bias == when).all()
                assert (copy.net["encoder"][1].running_mean == -when).all()
    assert expected == [89, 39]


def test_copies_predict_in_eval_mode_and_learn_nothing(tiny):
    earlier = EarlierNetworks(tiny(0), size=3, stores=3, most=3).train()
    before = {key: value.clone() for key, value in earlier.state_dict().items()}
    earlier.predict(torch.randn(2, 3, 8, 8), Progress(100, 160))
    assert all(torch.equal(value, before[key]) for key, value in earlier.state_dict().items())
    assert not any(parameter.requires_grad for parameter in earlier.parameters())
    assert all(copy.training for copy in earlier.copies)


def test_only_copies_that_were_made_are_used(tiny):
    earlier = EarlierNetworks(tiny(0), size=3, stores=3, most=3)
    earlier.copies[0].load_state_dict(constant(tiny, 0.0, 9.0, 0.0).state_dict())
    for seed in range(20):
        predicted = earlier.predict(torch.randn(1, 3, 8, 8), Progress(10, 160, seed=seed))
        assert (predicted.label == 1).all()
