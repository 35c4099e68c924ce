import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.rng import fold_in


class Small(nn.Module):
    """Parameters, buffers of floating point, and a counter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = fold_in(seed, "small")
        self.weight = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.bias = nn.Parameter(torch.randn(2, generator=generator))
        self.register_buffer("mean", torch.randn(2, generator=generator))
        self.register_buffer("count", torch.tensor(seed))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_decay_starts_as_an_even_average_and_ends_capped():
    trace = [ema_decay(step, 0.996) for step in range(300)]
    assert trace[:4] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert trace[248] == pytest.approx(248 / 249)
    assert trace[249:] == pytest.approx([0.996] * 51)
    assert [ema_decay(step, 0.6) for step in range(4)] == pytest.approx([0, 0.5, 0.6, 0.6])


def test_copy_steps():
    """D21: the authors' first epoch; after it the decay is that of the step, as if there had been none."""
    assert [ema_decay(step, 0.996, copy_steps=3) for step in range(5)] == pytest.approx([0, 0, 0, 3 / 4, 4 / 5])
    assert ema_decay(999, 0.996, 1000) == 0
    assert ema_decay(1000, 0.996, 1000) == 0.996


@given(st.integers(0, 100), st.floats(0, 1, allow_nan=False))
def test_equals_a_slow_reference(seed, decay):
    """Eq. 2: theta_t = alpha theta_t + (1 - alpha) theta_s."""
    teacher, student = make_teacher(Small(seed)), Small(seed + 1)
    before, source = values(teacher), values(student)
    ema_(teacher, student, decay)
    for name in ("weight", "bias", "mean"):
        expected = [
            decay * own + (1 - decay) * its
            for own, its in zip(before[name].flatten().tolist(), source[name].flatten().tolist(), strict=True)
        ]
        assert getattr(teacher, name).flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert teacher.count == seed + 1  # a counter has no average
    assert all(torch.equal(tensor, source[name]) for name, tensor in student.state_dict().items())


def test_the_ends_are_exact():
    teacher, student = make_teacher(Small(0)), Small(1)
    before = values(teacher)
    ema_(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before["weight"])
    assert torch.equal(teacher.mean, before["mean"])
    ema_(teacher, student, 0.0)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in teacher.state_dict().items())


def test_the_first_steps_average_the_students_evenly():
    teacher, students = make_teacher(Small(0)), [Small(seed) for seed in range(1, 6)]
    for step, student in enumerate(students):
        ema_(teacher, student, ema_decay(step, 0.996))
    torch.testing.assert_close(teacher.weight, torch.stack([student.weight for student in students]).mean(0))
    torch.testing.assert_close(teacher.mean, torch.stack([student.mean for student in students]).mean(0))


def test_statistics_of_batch_norm_are_averaged_and_its_counter_copied():
    student = nn.BatchNorm2d(2)
    teacher = make_teacher(student)
    student(torch.tensor([1.0, 3.0])[None, :, None, None] + torch.zeros(4, 2, 3, 3))
    assert student.running_mean.tolist() == pytest.approx([0.1, 0.3])
    ema_(teacher, student, 0.75)
    assert teacher.running_mean.tolist() == pytest.approx([0.025, 0.075])
    assert teacher.running_var.tolist() == pytest.approx([0.975, 0.975])
    assert teacher.num_batches_tracked == 1


def test_the_teacher_is_a_copy_that_no_gradient_reaches():
    student = Small(0)
    teacher = make_teacher(student)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    (teacher.weight.sum() * student.weight.sum()).backward()
    assert teacher.weight.grad is None
    with torch.no_grad():
        student.weight.add_(1)  # the storage is its own (not so in the authors' code, D23)
    assert not torch.equal(teacher.weight, student.weight)


def test_it_leaves_no_trace_for_autograd():
    teacher, student = make_teacher(Small(0)), Small(1)
    ema_(teacher, student, 0.5)
    assert not teacher.weight.requires_grad
    assert teacher.weight.grad_fn is None


def test_networks_of_different_shape_are_not_averaged():
    with pytest.raises((ValueError, RuntimeError)):
        ema_(make_teacher(nn.Linear(2, 2)), nn.Linear(2, 2, bias=False), 0.5)
    with pytest.raises((ValueError, RuntimeError)):
        ema_(make_teacher(nn.Linear(2, 2)), nn.Linear(3, 2), 0.5)


def test_the_host_never_waits(no_host_sync):
    student = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    no_host_sync(ema_, make_teacher(student), copy.deepcopy(student), 0.5)


def test_parameters_alone():
    teacher, student = make_teacher(Small(0)), Small(1)
    before, source = values(teacher), values(student)
    ema_(teacher, student, 0.25, buffers=False)
    for name in ("weight", "bias"):
        torch.testing.assert_close(values(teacher)[name], 0.25 * before[name] + 0.75 * source[name])
    for name in ("mean", "count"):
        assert torch.equal(values(teacher)[name], before[name])
