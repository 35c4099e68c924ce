"""The optimizers of a method: learning rates, first steps by hand, clipping, several in one step, fp16, and resume."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semiseg.engine import checkpoint
from semiseg.engine.optimizers import Optimizers
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.methods import supervised
from semiseg.models.build import Network, Undivided
from semiseg.optim import Config, Group
from semiseg.rng import fold_in, seeded
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable.of(("a", "b", "c"))


@pytest.fixture
def method(tiny) -> supervised.Method:
    return supervised.Method(supervised.Config(ema_decay=0.9), tiny, CLASSES)


def rates(optimizers: Optimizers, method: nn.Module) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = [group for _, optimizer in optimizers.each for group in optimizer.param_groups]
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_the_head_learns_faster_by_its_factor(method):
    optimizers = Optimizers(Config(lr=0.001, head_lr_factor=10), method)
    for step, expected in ((0, 0.001), (50, 0.001 * 0.5**0.9)):
        optimizers.set_lr(step, 100)
        assert optimizers.lr == expected
        found = rates(optimizers, method)
        assert len(found) == sum(parameter.requires_grad for parameter in method.parameters())
        for name, rate in found.items():
            assert rate == pytest.approx(expected if ".encoder." in name else 10 * expected), name
        assert not any(name.startswith("teacher.") for name in found)


def test_the_optimizer_has_the_settings_of_the_recipe(method):
    ((_, optimizer),) = Optimizers(Config(momentum=0.8, weight_decay=0.02), method).each
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}
    ((_, optimizer),) = Optimizers(Config(kind="adamw", betas=(0.8, 0.7), weight_decay=0.02), method).each
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.7)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}


def test_what_is_not_given_is_the_usual(method):
    ((_, optimizer),) = Optimizers(Config(), method).each
    assert optimizer.param_groups[0]["momentum"] == 0.9
    ((_, optimizer),) = Optimizers(Config(kind="adamw"), method).each
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def weights(method: supervised.Method) -> tuple[Tensor, Tensor]:
    return method.student.net.encoder[0].weight, method.student.net.segmentation_head.weight


def test_the_first_step_by_hand(method):
    optimizers = Optimizers(Config(lr=0.5, head_lr_factor=4, weight_decay=0.1), method)
    optimizers.set_lr(0, 9)
    conv, head = weights(method)
    before = conv.detach().clone(), head.detach().clone()
    (conv.sum() + head.sum()).backward()
    norm = optimizers.step(None)
    torch.testing.assert_close(conv.detach(), before[0] - 0.5 * (1 + 0.1 * before[0]))
    torch.testing.assert_close(head.detach(), before[1] - 2.0 * (1 + 0.1 * before[1]))
    assert norm.item() == pytest.approx((conv.numel() + head.numel()) ** 0.5)  # every gradient is 1
    assert conv.grad is None
    assert head.grad is None


def test_the_first_steps_of_adamw_by_hand(method):
    """Without bias correction the first steps would be 0.1 / sqrt(0.001), about 3, times longer."""
    optimizers = Optimizers(Config(kind="adamw", lr=0.5, head_lr_factor=4, weight_decay=0.1, power=1), method)
    conv, head = weights(method)
    expected = [weight.detach().double().clone() for weight in (conv, head)]
    mean = square = 0.0
    for step, slope in enumerate((3.0, -1.0)):
        optimizers.set_lr(step, 4)
        (slope * (conv.sum() + head.sum())).backward()
        optimizers.step(None)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        direction = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.999 ** (step + 1))) ** 0.5 + 1e-8)
        for weight, factor in zip(expected, (1, 4), strict=True):
            lr = 0.5 * (1 - step / 4) * factor
            weight.mul_(1 - lr * 0.1).sub_(lr * direction)
    torch.testing.assert_close(conv.detach().double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.detach().double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_long_gradients_are_shortened(method, limit):
    """All gradients of an optimizer by one factor. The norm that a step returns is that before."""
    settings = Config(lr=1, head_lr_factor=1, momentum=0, weight_decay=0, power=0, max_grad_norm=limit)
    optimizers = Optimizers(settings, method)
    optimizers.set_lr(0, 1)
    conv, head = weights(method)
    before = conv.detach().clone(), head.detach().clone()
    (2 * conv.sum() + 3 * head.sum()).backward()
    norm = (4 * conv.numel() + 9 * head.numel()) ** 0.5
    assert optimizers.step(None).item() == pytest.approx(norm)
    factor = min(1, limit / norm)
    torch.testing.assert_close(conv.detach(), before[0] - 2 * factor)
    torch.testing.assert_close(head.detach(), before[1] - 3 * factor)


def steps_taken(make: Callable[[Config, supervised.Method], Any]) -> dict[str, Tensor]:
    """Weights and momentum of some steps of a network whose weights lie as on a device, channels last."""
    with seeded(0, "steps"):
        net = Undivided(nn.Conv2d(3, 8, 3))
        net.segmentation_head = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))
    network = Network(net, Normalization(), 1).to(memory_format=torch.channels_last)
    method = supervised.Method(supervised.Config(), lambda: network, CLASSES)
    optimizers = make(Config(lr=0.1, power=2, weight_decay=0.1), method)
    for step in range(5):
        optimizers.set_lr(step, 5)
        method.student(torch.rand(2, 3, 8, 8, generator=fold_in(0, step))).square().mean().backward()
        optimizers.step(None)
    return dict(method.state_dict()) | optimizers.tensors(method)


def test_fused_steps_are_those_of_plain_sgd():
    def plain(config: Config, method: supervised.Method) -> Optimizers:
        optimizers = Optimizers(config, method)
        ((_, fused),) = optimizers.each
        groups = [{"params": group["params"], "lr_factor": group["lr_factor"]} for group in fused.param_groups]
        slow = torch.optim.SGD(groups, lr=1, momentum=0.9, weight_decay=0.1, foreach=False, fused=False)
        optimizers.each = [(config, slow)]
        return optimizers

    fused, other = steps_taken(Optimizers), steps_taken(plain)
    assert fused.keys() == other.keys()
    assert sum("momentum_buffer" in key for key in fused) == 6
    for key, value in fused.items():
        torch.testing.assert_close(value, other[key], rtol=1e-6, atol=1e-8, msg=key)


def test_a_first_step_left_out_leaves_no_momentum(method):
    """Torch's own fused step takes what lies in fresh memory for momentum then."""
    optimizers, scaler = Optimizers(Config(), method), torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    scaler.scale((method.student(torch.rand(2, 3, 8, 8)) * 2.0**100).sum()).backward()
    optimizers.step(scaler)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items() if "running" not in key
               and "tracked" not in key)  # fmt: skip
    momentum = optimizers.tensors(method)
    assert len(momentum) == sum(parameter.requires_grad for parameter in method.parameters())
    assert not any(value.any() for value in momentum.values())


def test_without_momentum_there_is_none(method):
    assert Optimizers(Config(momentum=0), method).tensors(method) == {}


def test_a_group_without_parameters_is_left_out(method):
    for parameter in method.student.net.encoder.parameters():
        parameter.requires_grad_(False)
    optimizers = Optimizers(Config(lr=1), method)
    ((_, optimizer),) = optimizers.each
    assert len(optimizer.param_groups) == 1
    optimizers.set_lr(0, 9)
    assert optimizer.param_groups[0]["lr"] == 10
    assert optimizers.lr == 1


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_learning_rate_survives_restored_optimizers(method, kind):
    """In the authors' code it stops falling after a resume (D50)."""
    saved = Optimizers(Config(kind=kind, lr=0.5, power=1), method)
    saved.set_lr(0, 4)
    optimizers = Optimizers(Config(kind=kind, lr=0.5, power=1), method)
    optimizers.load(method, saved.tensors(method))
    optimizers.set_lr(2, 4)
    ((_, optimizer),) = optimizers.each
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 2.5]


# a method with optimizers of its own


CRITIC = Config(kind="adamw", lr=0.01, power=0, weight_decay=0, warmup_steps=2, max_grad_norm=1)
STATES = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
PARAMETERS = ("student.0.0.weight", "student.0.0.bias", "scale")


class Method(SemiMethod):
    """A trained convolution whose name has dots, a trained number, a frozen layer, and a critic if asked for.

    With turned=True the groups are in another order, so that no number of a parameter is the same.
    """

    def __init__(self, turned: bool = False, critic: bool = False) -> None:
        super().__init__(None, lambda: None, CLASSES)  # its parts are built here
        with seeded(0):
            self.student = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Flatten())
            self.scale = nn.Parameter(torch.ones(()))
            self.teacher = nn.Linear(2, 2).requires_grad_(False)
            self.critic = nn.Linear(36, 1) if critic else None
        self.turned = turned
        self.to(memory_format=torch.channels_last)

    def groups(self, settings: Config) -> list[Group]:
        groups = [Group([self.scale], settings, 2.0), Group(list(self.student.parameters()), settings)]
        if self.critic is not None:
            groups.insert(1, Group(list(self.critic.parameters()), CRITIC, 0.5))  # between two of one optimizer
        return groups[::-1] if self.turned else groups

    def loss(self) -> Tensor:
        image = torch.linspace(-1, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)
        found = self.scale * self.student(image)
        return found.square().sum() + (0 if self.critic is None else 7 * self.critic(found.detach()).sum())

    def step(self, optimizers: Optimizers, step: int, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        optimizers.set_lr(step, 100)
        loss = self.loss()
        (loss if scaler is None else scaler.scale(loss)).backward()
        return optimizers.step(scaler)


def state(method: Method, optimizers: Optimizers) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in (dict(method.state_dict()) | optimizers.tensors(method)).items()}


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, kind, critic):
    method, restored, settings = Method(critic=critic), Method(True, critic), Config(kind=kind, lr=0.01)
    optimizers, other = Optimizers(settings, method), Optimizers(settings, restored)
    for step in range(2):
        method.step(optimizers, step)
    values = {"recipe": {}, "classes": CLASSES, "normalization": Normalization(), "predictor": ["student"]}
    model, tensors = method.state_dict(), optimizers.tensors(method)
    saved = checkpoint.read(checkpoint.save(tmp_path, step=2, model=model, optimizer=tensors, **values))
    expected = {f"{name}.{state}" for name in PARAMETERS for state in STATES[kind]}
    if critic:
        expected |= {f"critic.{name}.{state}" for name in ("weight", "bias") for state in STATES["adamw"]}
    assert saved.optimizer_state().keys() == expected
    saved.load_model(restored)
    other.load(restored, saved.optimizer_state())
    factors = [group["lr_factor"] for _, optimizer in other.each for group in optimizer.param_groups]
    assert factors == ([1.0, 2.0, 0.5] if critic else [1.0, 2.0])
    for _, optimizer in other.each:
        for parameter, values in optimizer.state.items():  # saved row by row; a fused step reads them as they lie
            for value in values.values():
                assert value.dim() == 0 or value.stride() == parameter.stride()
    for step in range(2, 4):
        method.step(optimizers, step)
        restored.step(other, step)
    one, its = state(method, optimizers), state(restored, other)
    assert one.keys() == its.keys()
    assert all(torch.equal(value, its[key]) and value.dtype == its[key].dtype for key, value in one.items())


def test_a_first_step_that_was_left_out_leaves_nothing_to_load():
    method = Method()
    optimizers = Optimizers(Config(kind="adamw"), method)
    assert optimizers.tensors(method) == {}
    optimizers.load(method, {})
    method.step(optimizers, 0)
    assert optimizers.tensors(method).keys() == {f"{name}.{state}" for name in PARAMETERS for state in STATES["adamw"]}


WEIGHT, STEP = "student.0.0.weight.momentum_buffer", "student.0.0.weight.step"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({WEIGHT: None}, f"{WEIGHT} is missing"),
        ({WEIGHT: None, WEIGHT.replace("student", "pupil"): torch.zeros(4, 3, 3, 3)}, f"{WEIGHT} is missing"),
        ({"pupil.step": torch.ones(())}, "pupil.step belongs to no parameter"),
        ({"student.0.0.step": torch.ones(())}, "student.0.0.step belongs to no parameter"),
        ({"0.momentum_buffer": torch.ones(())}, "0.momentum_buffer belongs to no parameter"),  # format 2
        ({"step": torch.ones(())}, "step belongs to no parameter"),
        ({"teacher.weight.step": torch.ones(())}, "teacher.weight.step belongs to no parameter"),
        ({WEIGHT: torch.ones(1)}, rf"{WEIGHT} has shape \(1,\), its parameter \(4, 3, 3, 3\)"),
        ({WEIGHT: torch.ones(())}, rf"{WEIGHT} has shape \(\), its parameter"),  # one value would fill any shape
        ({STEP: torch.ones(3)}, rf"{STEP} has shape \(3,\), its parameter"),
    ],
)
def test_an_optimizer_of_another_network_is_refused(changes, says):
    method = Method()
    optimizers = Optimizers(Config(), method)
    tensors = optimizers.tensors(method) | changes
    with pytest.raises(
        UserError, match=rf"^the optimizer's tensor {says}.*; delete the newest checkpoint.*$"
    ) as caught:
        optimizers.load(method, {key: value for key, value in tensors.items() if value is not None})
    assert "\n" not in str(caught.value)


def test_groups_with_settings_of_their_own_have_an_optimizer_of_their_own():
    method = Method(critic=True)
    optimizers = Optimizers(Config(lr=0.1, power=1), method)
    kinds = [type(optimizer) for _, optimizer in optimizers.each]
    assert kinds == [torch.optim.SGD, torch.optim.AdamW]
    assert [len(optimizer.param_groups) for _, optimizer in optimizers.each] == [2, 1]
    assert len(list(optimizers.parameters())) == 5
    for step, own in ((0, 0.005), (50, 0.01)):  # the critic warms up and never decays
        optimizers.set_lr(step, 100)
        lr = 0.1 * (1 - step / 100)
        assert optimizers.lr == pytest.approx(lr)
        assert rates(optimizers, method) == pytest.approx(
            {"scale": 2 * lr, "student.0.0.weight": lr, "student.0.0.bias": lr}
            | {"critic.weight": own / 2, "critic.bias": own / 2}
        )


def test_optimizers_of_one_step_do_not_disturb_each_other():
    """Each part steps as it would alone: the critic's gradients alone are shortened. The norm is that of all."""
    both, student = Method(critic=True), Method()
    optimizers, alone = Optimizers(Config(lr=0.01), both), Optimizers(Config(lr=0.01), student)
    critic = nn.Linear(36, 1)
    critic.load_state_dict(both.critic.state_dict())
    adamw = torch.optim.AdamW(critic.parameters(), lr=1, weight_decay=0)
    for step in range(3):
        with torch.no_grad():
            image = torch.linspace(-1, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)
            seen = student.scale * student.student(image)
        norm, of_student = both.step(optimizers, step), student.step(alone, step)
        adamw.zero_grad()
        (7 * critic(seen).sum()).backward()
        of_critic = nn.utils.clip_grad_norm_(critic.parameters(), 1)
        adamw.param_groups[0]["lr"] = (0.0025, 0.005, 0.005)[step]
        adamw.step()
        assert of_critic > 10
        assert norm.item() == pytest.approx((of_student**2 + of_critic**2).sqrt().item(), rel=1e-5)
    for key, value in student.state_dict().items():
        assert torch.equal(value, both.state_dict()[key]), key
    for key, value in critic.state_dict().items():
        torch.testing.assert_close(both.critic.state_dict()[key], value, rtol=1e-5, atol=1e-7)


def test_several_optimizers_share_a_scaler(monkeypatch):
    """It is updated once a step: its scale grows after two steps, not after one. Steps are those without a scaler."""
    scaled, plain = Method(critic=True), Method(critic=True)
    one, other = Optimizers(Config(lr=0.01), scaled), Optimizers(Config(lr=0.01), plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    scales = []
    for step in range(4):
        norm, same = scaled.step(one, step, scaler), plain.step(other, step)
        assert norm.item() == pytest.approx(same.item())
        scales.append(scaler.get_scale())
    assert scales == [2.0**8, 2.0**9, 2.0**9, 2.0**10]
    for key, value in state(plain, other).items():
        torch.testing.assert_close(state(scaled, one)[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_an_overflow_of_one_optimizer_halves_the_scale_once():
    method = Method(critic=True)
    optimizers = Optimizers(Config(lr=0.01), method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    method.step(optimizers, 0, scaler)
    before = state(method, optimizers)
    optimizers.set_lr(1, 100)
    scaler.scale(method.loss()).backward()
    method.critic.bias.grad.fill_(torch.inf)
    assert optimizers.step(scaler).isinf()
    assert scaler.get_scale() == 2.0**7
    after = state(method, optimizers)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {key for key in changed if key.startswith("critic")} == set()  # neither weights nor moments
    assert {"scale", "student.0.0.weight", "student.0.0.bias"} <= changed
    assert all(value.isfinite().all() for value in after.values())
