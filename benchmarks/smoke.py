"""What a GPU alone can show, in a process group of one: NCCL, SyncBN and fp16 beside fp32.

python benchmarks/smoke.py [--device cuda]; on a CPU it uses gloo, plain batch norm and bf16 instead.
"""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import common
import timm.layers
import torch
import torch.distributed as dist
from step import Ours, loaded_batch
from torch import nn

from semiseg.models import build
from semiseg.rng import seeded

STEPS, LEARNING_RATE = 10, 1e-4
# Relative difference of a loss; rounding errors grow in training.
ALLOWED = {"synchronized": 1e-3, "low precision": 5e-2}


def measure(run: common.Settings, results: common.Results) -> None:
    """Takes the same steps in a process group: in fp32, twice, with SyncBN, and in low precision."""
    side, batch, encoder = run.size((65, 4, "resnet18"), (257, 8, "resnet50"), (33, 2, "tu-test_efficientnet"))
    low = "fp16" if run.device.type == "cuda" else "bf16"
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "steps": STEPS,
                         "low precision": low}  # fmt: skip
    task = {"device": run.device.type, "encoder": encoder, "side": side, "batch": batch, "low": low}
    found = in_a_group(task)
    results.settings |= {"backend": found["backend"], "batch norm": found["batch norm"]}
    alone = found["alone"]
    for name in ("again", "synchronized", "low precision"):
        differences = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(alone, found[name], strict=True)]
        results.figure(f"{name}, relative difference of a loss, first step", "1", differences[0])
        results.figure(f"{name}, largest relative difference of a loss", "1", max(differences))
        if name not in ALLOWED:
            continue
        results.figure(f"{name}, allowed", "1", ALLOWED[name])
        results.ratio(
            f"{name}, difference / allowed",
            f"{name}, largest relative difference of a loss", f"{name}, allowed",
        )  # fmt: skip
    results.figure("steps left out for an overflow", "1", found["left out"])
    results.figure("largest error of a sum over the group", "1", found["error of a sum"])
    results.note("One process: collectives run through the backend, but nothing crosses from one GPU to another.")


def in_a_group(task: dict[str, Any]) -> dict[str, Any]:
    """Runs `task` in a new process that is the only one of its group, and returns its result.

    Raises:
        RuntimeError: the process fails. The message is its last line on stderr.
    """
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--task", json.dumps(task)],
        env=os.environ | group, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def task(device: str, encoder: str, side: int, batch: int, low: Any) -> dict[str, Any]:
    """Takes the steps in a process group, in full fp32. TF32 is off: its rounding alone makes a difference of 1e-3."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    where = torch.device(device)
    loaded = loaded_batch(batch, side, 21, where)

    def losses(ours: Ours) -> list[float]:
        rolled = (replace(loaded, image=loaded.image.roll(n, -1), label=loaded.label.roll(n, -1)) for n in range(STEPS))
        return [float(ours.take(each).total) for each in rolled]

    def network(synchronized: bool) -> nn.Module:
        with seeded(0, "smoke"):
            # Dropout draws from the device's generator, whose draws depend on the kernels that run.
            settings = build.Config(encoder=encoder, weights=None, options={"decoder_aspp_dropout": 0.0})
            net = build.build(settings, 21)
        return timm.layers.convert_sync_batchnorm(net) if synchronized else net

    settings: dict[str, Any] = {"encoder": encoder, "lr": LEARNING_RATE, "threshold": 0.2}
    synchronized = where.type == "cuda"  # torch has no SyncBN for a CPU
    low_precision = Ours(where, network=lambda: network(False), precision=low, **settings)
    found = {
        "alone": losses(Ours(where, network=lambda: network(False), **settings)),
        "again": losses(Ours(where, network=lambda: network(False), **settings)),
        "synchronized": losses(Ours(where, network=lambda: network(synchronized), **settings)),
        "low precision": losses(low_precision),
        "batch norm": "SyncBN" if synchronized else "plain",
        "backend": dist.get_backend(),
    }
    scale = low_precision.stepper.runtime.scaler_state().get("scale")
    # Each skipped step halves the scale. So few steps never raise it.
    found["left out"] = 0.0 if scale is None else math.log2(2.0**16 / scale)
    values = torch.randn(1 << 20, device=where)
    summed = values.clone()
    dist.all_reduce(summed)
    gathered = torch.empty_like(values)
    dist.all_gather([gathered], values)
    found["error of a sum"] = float(max((summed - values).abs().max(), (gathered - values).abs().max()))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(task(**json.loads(sys.argv[2]))))
    else:
        common.main("smoke", __doc__, measure)
