"""Chooses the precision of the networks, and measures how slow an emulated bf16 is.

bf16 halves the memory of a network. It is fast if the processor has instructions for it. If not, torch emulates it, and
a step takes 10 to 100 times as long as in fp32.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from semiseg.recipe.engine import Precision, PrecisionSetting

_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # the first two are flags of x86, the last one of Arm
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Choice:
    """A precision, and the reason for it."""

    precision: Precision
    reason: str


def choose(setting: PrecisionSetting, device: torch.device) -> Choice:
    """Turns `engine.precision` into a precision. `auto` is bf16 if the device has instructions for it, else fp32."""
    if setting != "auto":
        return Choice(setting, "set by engine.precision")
    native, reason = has_bf16(device)
    return Choice("bf16" if native else "fp32", reason)


def has_bf16(device: torch.device) -> tuple[bool, str]:
    """Returns whether the device has instructions for bf16, and the reason for the answer.

    For a CPU the answer comes from its flags, because torch has a bf16 kernel for every CPU and does not report whether
    the kernel emulates bf16. The variable ONEDNN_MAX_CPU_ISA forbids newer instructions in the library that computes
    convolutions, so it counts, too.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, "the GPU has bf16" if native else "the GPU has no bf16"
    if device.type != "cpu":
        return False, f"bf16 was not tried on {device.type}"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit in _ISA_WITHOUT_BF16:
        return False, f"ONEDNN_MAX_CPU_ISA={limit} allows no bf16"
    found = [flag for flag in _CPU_FLAGS if flag in cpu_flags()]
    return bool(found), f"the CPU has {' and '.join(found)}" if found else "the CPU has no bf16 instructions"


def cpu_flags() -> frozenset[str]:
    """Returns the flags of the CPU, as Linux names them; none if there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(flags, "").split())


def emulation(precision: Precision, device: torch.device) -> str | None:
    """Returns a message on how much slower bf16 is than fp32 if the device emulates it, else None."""
    native, reason = has_bf16(device)
    if precision != "bf16" or native:
        return None
    return (
        f"bf16 is emulated here ({reason}): a small convolution takes {slowdown(device):.1f} times as long as in fp32"
    )


def slowdown(device: torch.device) -> float:
    """Measures the time of a small convolution with gradients in bf16, divided by that in fp32, in under a second."""
    image = torch.ones(2, 16, 24, 24, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(32, 16, 3, 3, device=device, requires_grad=True)

    def convolve() -> None:
        F.conv2d(image, weight).sum().backward()  # type: ignore[no-untyped-call]

    with torch.autocast(device.type, torch.bfloat16):
        low = _seconds(convolve, device)
    return low / _seconds(convolve, device)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Returns the median time of five calls, after one call to warm up, s."""
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
