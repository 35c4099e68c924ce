"""Sets up device, precision and processes with Accelerate. Methods and networks do not depend on them."""

import atexit
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import timm.layers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, gather_object
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from semiseg.engine.precision import choose
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.recipe.engine import Device, PrecisionSetting

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Runtime:
    """The device, the precision and the processes of a run.

    Args:
        device: where to compute. auto takes an accelerator if there is one.
        precision: the precision of the networks; hardness and losses are always fp32. auto is bf16 if the device has
            instructions for it, else fp32.

    Attributes:
        precision: the precision in which the networks compute.
        reason: why this precision was chosen.

    Raises:
        UserError: the machine has no such device, or the device cannot compute in this precision.
    """

    def __init__(self, device: Device = "auto", precision: PrecisionSetting = "fp32") -> None:
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
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # overrides the launcher's
                kwargs_handlers=[wrapping],
            )
        except ValueError as error:
            raise UserError(f"engine.precision: {choice.precision} does not work on this device ({error})") from error
        self.precision, self.reason = choice.precision, choice.reason
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            _keep_freed_memory()
        if torch.distributed.is_initialized():
            atexit.unregister(_end_communication)  # registered once for several runs
            atexit.register(_end_communication)
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.name = f"process {self.rank} of {self.world_size}: " if self.rank else ""  # for messages

    def where(self) -> str:
        """Returns a description of the device for users, e.g. `cpu with 2 threads`."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return f"cpu with {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)

    def describe(self) -> dict[str, Any]:
        """Returns processes, device and precision, for events.jsonl."""
        return {"processes": self.world_size, "device": str(self.device), "precision": self.precision}

    def prepare(self, method: SemiMethod) -> Any:
        """Wraps the method, for gradients across processes and autocast.

        On several GPUs it also replaces batch norm by SyncBN, in place. timm's converter keeps the activations that
        timm's encoders fuse into their norm layers; torch's converter drops them.
        """
        if self.synchronizes_batch_norm:
            timm.layers.convert_sync_batchnorm(method)  # type: ignore[attr-defined, no-untyped-call]
        wrapped = self.accelerator.prepare(method)
        if isinstance(wrapped, DistributedDataParallel):
            # Methods change buffers alike in all processes. As an argument it makes newer versions of torch warn.
            wrapped.broadcast_buffers = False
        return wrapped

    @property
    def synchronizes_batch_norm(self) -> bool:
        """Returns whether batch norm uses the images of all processes together (SyncBN), as on several GPUs."""
        return self.world_size > 1 and self.device.type == "cuda"

    def autocast(self) -> Any:
        """Returns a context in which networks compute in this run's precision, even if a later run has another one."""
        low = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.precision != "fp32")

    def reducing(self, wrapped: Any, last: bool) -> AbstractContextManager[None]:
        """Returns the context for a backward pass. Only the last one of a step reduces gradients over the processes."""
        return nullcontext() if last else self.accelerator.no_sync(wrapped)

    def backward(self, share: Tensor) -> None:
        """Adds the gradients of a share of the loss. The factor turns the mean over the processes into a sum."""
        self.accelerator.backward(share * self.world_size)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Returns the scaler of the loss, which fp16 needs."""
        return self.accelerator.scaler

    def average_batch_statistics(self, method: SemiMethod) -> None:
        """Replaces running statistics of batch norm by their mean over the processes, where SyncBN does not exist."""
        if self.world_size == 1 or self.device.type == "cuda":
            return
        norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
        running = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        if running:
            mean = self.sum(torch.cat([value.flatten() for value in running])) / self.world_size
            for value, part in zip(running, mean.split([value.numel() for value in running]), strict=True):
                value.copy_(part.view_as(value))

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates the tensors of all processes along the first axis."""
        return self.accelerator.gather(tensor) if self.world_size > 1 else tensor

    def gather_lists(self, items: list[Any]) -> list[Any]:
        """Collects the items of all processes in one list. It waits for all processes."""
        return gather_object(items) if self.world_size > 1 else items

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.world_size > 1 else tensor

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the first process run the block before the other processes enter it.

        Raises:
            UserError: another process has ended.
        """
        with self.together(), self.accelerator.main_process_first():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs a block that needs all processes. If one of them has ended, the others stop with an error.

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

    def tracker(self, name: str, project: str, folder: Path, settings: dict[str, Any]) -> Any:
        """Starts one of Accelerate's trackers. Only the first process may call this.

        Args:
            name: `tensorboard`, `wandb` or `mlflow`.
            project: the name of the project; of TensorBoard the folder inside `folder`.
            folder: where trackers write that need a folder.
            settings: further arguments of the tracker.
        """
        self.accelerator.project_configuration.logging_dir = str(folder)
        self.accelerator.log_with, self.accelerator.trackers = [name], []
        self.accelerator.init_trackers(project, init_kwargs={name: settings})
        return self.accelerator.trackers[0]

    def peak_memory_mb(self) -> float:
        """Returns the peak memory, MB: on a GPU allocated since the last call, else resident since the start."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    def scaler_state(self) -> dict[str, Any]:
        """Returns the state of the fp16 gradient scaler. In other precisions it is empty."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Loads a state of the gradient scaler."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)


def _end_communication() -> None:
    """Ends the communication between processes before the Python interpreter shuts down.

    Threads of gloo may still hold tensors of the last exchange. If a thread releases them while the interpreter shuts
    down, the process aborts, although all its work is done.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # deletes wrappers that still refer to the group
        torch.distributed.destroy_process_group()


def return_freed_memory() -> None:
    """Returns freed memory to the system, with glibc: a process that computes on the CPU keeps it for later tensors."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    """Makes the C library keep freed memory for later tensors.

    By default glibc returns large blocks to Linux, and Linux clears every page of the next block. This takes 5 to 12 %
    of a training step (docs/log.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    # Older versions of glibc accept at most 32 MB. With only one of the two thresholds, each tensor gets a new mapping.
    if any(mallopt(_M_MMAP_THRESHOLD, size) for size in (2**31 - 1, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
