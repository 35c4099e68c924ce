"""Calls of what has weights beside the networks of a method: recorded in a step, and taken again alone, to time them.

A call is taken again with as many gradient passes as it had in the step. Adversarial noise needs some of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from semiseg.engine.runtime import Runtime
from semiseg.models.build import Network
from semiseg.models.predict import evaluating


@dataclass(eq=False)
class Call:
    """A call of a part, as it was in a step.

    Attributes:
        module: the part.
        run: calls it.
        inputs: what it was called with, without their graph.
        trained: its weights that learn from the call.
        graded: whether gradients were on.
        evaluated: whether the part was in eval mode.
        inner: gradient passes before the backward pass of the step. They reach the inputs alone.
        outer: gradient passes of the step's backward pass. They reach the trained weights, too.
    """

    module: nn.Module
    run: Callable[..., Any]
    inputs: tuple[Any, ...]
    trained: tuple[Tensor, ...]
    graded: bool
    evaluated: bool
    inner: int = 0
    outer: int = 0

    @property
    def images(self) -> int:
        """Returns the number of images: rows of the first input."""
        return len(next(tensors(self.inputs)))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Returns what the time of the call depends on."""
        weights = tuple(weight.shape for weight in self.module.parameters())
        inputs = tuple((one.shape, one.dtype, one.requires_grad) for one in tensors(self.inputs))
        modes = (len(self.trained), self.graded, self.evaluated)
        return (type(self.module), weights, inputs, *modes, self.inner, self.outer)

    def again(self) -> None:
        """Takes the call again, with its gradient passes. No gradient is kept."""
        inputs = without_graph(self.inputs)
        with torch.set_grad_enabled(self.graded), evaluating(self.module) if self.evaluated else nullcontext():
            output = next(tensors(self.run(*inputs)))
        given = [one for one in tensors(inputs) if one.requires_grad]
        for wanted in [given] * self.inner + [[*given, *self.trained]] * self.outer:
            torch.autograd.grad(output, wanted, torch.ones_like(output), retain_graph=True, allow_unused=True)


class Recorder:
    """Records calls, and counts the gradient passes through each of them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.calls: list[Call] = []
        self.backward = False  # whether the backward pass of the step is running

    @property
    def images(self) -> int:
        """Returns the number of images of all calls."""
        return sum(call.images for call in self.calls)

    def kinds(self) -> list[tuple[Call, int]]:
        """Returns a call of each kind, and the number of such calls."""
        numbers = Counter(call.kind for call in self.calls)
        return [(call, numbers[kind]) for kind, call in {call.kind: call for call in self.calls}.items()]

    def part(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Records a call of a part. It is a forward hook."""
        # Inside `functional_call` these are the weights that replace those of the module, e.g. fixed ones.
        trained = tuple(weight for weight in module.parameters() if weight.requires_grad)
        self._add(module, module, inputs, trained, output)

    def decode(self, network: Network, features: Any, decoded: Tensor) -> None:
        """Records a pass through the decoder and the head of a network that does not learn."""
        self._add(network, lambda given: network.classify(network.decode(given), given.size), (features,), (), decoded)

    def _add(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        inputs: tuple[Any, ...],
        trained: tuple[Tensor, ...],
        output: Any,
    ) -> None:
        def in_precision(*given: Any) -> Any:
            with self.runtime.autocast():
                return run(*given)

        modes = {"graded": torch.is_grad_enabled(), "evaluated": not module.training}
        call = Call(module, in_precision, without_graph(inputs), trained, **modes)
        self.calls.append(call)

        def passed(gradient: Tensor) -> None:
            if self.backward:
                call.outer += 1
            else:
                call.inner += 1
            if gradient.requires_grad:  # a pass through this gradient goes through the call once more
                gradient.register_hook(passed)

        first = next(tensors(output))
        if first.requires_grad:
            first.register_hook(passed)


@contextmanager
def recording(method: nn.Module, runtime: Runtime) -> Iterator[Recorder]:
    """Records the calls of the parts of a method that have weights and are no networks, in steps taken inside."""
    recorder, original = Recorder(runtime), runtime.backward

    def backward(share: Tensor) -> None:
        recorder.backward = True
        original(share)
        recorder.backward = False

    with ExitStack() as stack:
        stack.enter_context(patch.object(runtime, "backward", backward))
        for part in parts_of(method):
            stack.callback(part.register_forward_hook(recorder.part).remove)
        yield recorder


def parts_of(method: nn.Module) -> list[nn.Module]:
    """Returns the parts of a method that have weights and are no networks; those of a list one by one."""
    found = []
    for child in method.children():
        if isinstance(child, nn.ModuleList):
            found += parts_of(child)
        elif not isinstance(child, Network) and any(True for _ in child.parameters()):
            found.append(child)
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """Gives the tensors in a value: in tuples, lists and dataclasses, too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value):
        for each in fields(value):
            yield from tensors(getattr(value, each.name))


def without_graph(value: Any) -> Any:
    """Copies a value so that its tensors are leaves of a graph. They require gradients if they did."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return tuple(without_graph(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: without_graph(getattr(value, each.name)) for each in fields(value)})
    return value
