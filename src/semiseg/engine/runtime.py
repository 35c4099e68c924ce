"""Device, precision and processes, through Accelerate. Nothing outside the engine knows that they exist."""

import atexit
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import timm.layers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, gather_object
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.engine.precision import Setting, choose
from semiseg.errors import UserError
from semiseg.method import SemiMethod

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

Device = Literal["auto", "cpu", "cuda", "mps"]


class Runtime:
    """Where and how a run computes.

    Args:
        device: auto takes an accelerator if there is one.
        precision: of the networks; hardness and losses are fp32 in all of them. auto is bf16 where the device has it.

    Attributes:
        precision: what networks compute in.
        reason: why it is this one.

    Raises:
        UserError: the machine has no such device, or the device cannot compute in this precision.
    """

    def __init__(self, device: Device = "auto", precision: Setting = "fp32") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("engine.device: cuda is not available on this machine; use auto or cpu")
        if device == "mps" and not torch.backends.mps.is_available():
            raise UserError("engine.device: mps is not available on this machine; use auto or cpu")
        # A process may run several recipes in turn, each with its own precision and device.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
        if on_cpu and precision == "fp16":
            raise UserError("engine.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
        accelerator = torch.accelerator.current_accelerator() if device == "auto" else torch.device(device)
        choice = choose(precision, torch.device("cpu") if on_cpu or accelerator is None else accelerator)
        mixed = "no" if choice.precision == "fp32" else choice.precision
        wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        try:
            self.accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision=mixed,
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # whatever a launcher asks for
                kwargs_handlers=[wrapping],
            )
        except ValueError as error:
            raise UserError(f"engine.precision: {choice.precision} does not work on this device ({error})") from error
        self.precision, self.reason = choice.precision, choice.reason
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            _keep_freed_memory()
        if torch.distributed.is_initialized():
            atexit.unregister(_leave_the_others)  # once, however many runs a process has
            atexit.register(_leave_the_others)
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.name = f"process {self.rank} of {self.world_size}: " if self.rank else ""  # at the head of its messages

    def where(self) -> str:
        """Names the device as people know it, e.g. `cpu with 2 threads`."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return f"cpu with {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)

    def describe(self) -> dict[str, Any]:
        """Returns values for events.jsonl."""
        return {"processes": self.world_size, "device": str(self.device), "precision": self.precision}

    def prepare(self, method: SemiMethod, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The method wrapped for gradients across processes and for autocast, and the optimizer for its scaler.

        On several GPUs batch norm becomes SyncBN, in place (timm's converter keeps the activations that its encoders
        fuse into their norm layers; torch's own drops them).
        """
        if self.world_size > 1 and self.device.type == "cuda":
            timm.layers.convert_sync_batchnorm(method)  # type: ignore[attr-defined, no-untyped-call]
        return self.accelerator.prepare(method, optimizer)

    def autocast(self) -> Any:
        """Context in which networks compute in the run's precision, also while a later run has another one."""
        low = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.precision != "fp32")

    def reducing(self, wrapped: Any, last: bool) -> AbstractContextManager[None]:
        """Context of one of a step's backward passes: gradients are reduced over the processes in the last one."""
        return nullcontext() if last else self.accelerator.no_sync(wrapped)

    def backward(self, share: Tensor) -> None:
        """Adds the gradients of a share of the loss. Reducing takes means over the processes, shares add up."""
        self.accelerator.backward(share * self.world_size)

    def step(self, optimizer: Any) -> None:
        """Optimizer step. In fp16 a step whose gradients overflow is left out, and the loss scaled down."""
        optimizer.step()
        optimizer.zero_grad()

    def average_batch_statistics(self, method: SemiMethod) -> None:
        """Makes the running statistics of batch norm their mean over the processes, where SyncBN does not exist."""
        if self.world_size == 1 or self.device.type == "cuda":
            return
        norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
        running = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        if running:
            mean = self.sum(torch.cat([value.flatten() for value in running])) / self.world_size
            for value, part in zip(running, mean.split([value.numel() for value in running]), strict=True):
                value.copy_(part.view_as(value))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after another along the first axis."""
        return self.accelerator.gather(tensor) if self.world_size > 1 else tensor

    def gather_lists(self, items: list[Any]) -> list[Any]:
        """The items of all processes in one list. This waits for them."""
        return gather_object(items) if self.world_size > 1 else items

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.world_size > 1 else tensor

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through this before the others enter it.

        Raises:
            UserError: another process has ended.
        """
        with self.together(), self.accelerator.main_process_first():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that needs all processes: if one is gone, the others say so and leave.

        Raises:
            UserError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and any(word in str(error) for word in ("gloo", "NCCL", "onnection")):
                raise UserError(
                    "lost another process of this run; the same command goes on from the last checkpoint"
                ) from error
            raise

    def peak_memory_mb(self) -> float:
        """Most memory that was in use: on a GPU allocated since the last call, else resident since the start, MB."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    def scaler_state(self) -> dict[str, Any]:
        """State of the fp16 gradient scaler; empty in other precisions."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Puts the scaler back where it was."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)


def _leave_the_others() -> None:
    """Ends the communication between processes while Python is still there.

    Threads of gloo may hold tensors of the last exchange; one that lets go of them while the interpreter is being taken
    down aborts the process, after all its work was done.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # wrappers that still refer to the group
        torch.distributed.destroy_process_group()


def _keep_freed_memory() -> None:
    """Has the C library keep memory that was freed, for the next tensor of a step.

    By default glibc gives large pieces back to Linux, which then has to clear every page of the next ones: 5 to 12 % of
    a training step (docs/log.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    # Older ones take no more than 32 MB; with one of the two thresholds alone every tensor would be mapped anew.
    if any(mallopt(_M_MMAP_THRESHOLD, size) for size in (2**31 - 1, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
