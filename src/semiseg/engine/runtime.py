"""Device, precision and processes, through Accelerate. Nothing outside the engine knows that they exist."""

from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from semiseg.errors import UserError
from semiseg.method import SemiMethod

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class Runtime:
    """Where and how a run computes.

    Args:
        device: auto takes an accelerator if there is one.
        precision: of the networks; hardness and losses are fp32 in all of them.

    Raises:
        UserError: the machine has no such device, or the device cannot compute in this precision.
    """

    def __init__(self, device: Device = "auto", precision: Precision = "fp32") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("engine.device: cuda is not available on this machine; use auto or cpu")
        if device == "mps" and not torch.backends.mps.is_available():
            raise UserError("engine.device: mps is not available on this machine; use auto or cpu")
        # A process may run several recipes in turn, each with its own precision and device.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
        if on_cpu and precision == "fp16":
            raise UserError("engine.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
        mixed = "no" if precision == "fp32" else precision
        try:
            self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed)
        except ValueError as error:
            raise UserError(f"engine.precision: {precision} does not work on this device ({error})") from error
        self.precision = precision
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process

    def prepare(self, method: SemiMethod, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The method wrapped for gradients across processes and for autocast, and the optimizer for its scaler."""
        if self.world_size > 1 and self.device.type == "cuda":
            method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
        return self.accelerator.prepare(method, optimizer)

    def autocast(self) -> Any:
        """Context in which networks compute in the run's precision, also while a later run has another one."""
        low = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.precision != "fp32")

    def step(self, optimizer: Any, loss: Tensor) -> None:
        """Backward pass and optimizer step."""
        self.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after another along the first axis."""
        return self.accelerator.gather(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def mean(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes, as Python numbers: this waits for the device."""
        if not scalars:
            return {}
        stacked = torch.stack([value.float() for value in scalars.values()])
        values = (self.sum(stacked) / self.world_size).tolist()
        return dict(zip(scalars, values, strict=True))

    def scaler_state(self) -> dict[str, Any]:
        """State of the fp16 gradient scaler; empty in other precisions."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Puts the scaler back where it was."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)
