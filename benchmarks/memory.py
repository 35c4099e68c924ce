"""Peak memory of a step of iMAS by micro-batch: what a GPU must hold.

DeepLabV3+ with ResNet-50, on a GPU 513 x 513 px, 16 labeled and 16 unlabeled images: python benchmarks/memory.py
"""

import common
import step

from semiseg.recipe.engine import Precision


def measure(run: common.Settings, results: common.Results) -> None:
    """Measures the whole batch in one forward pass, then in halves, quarters ..."""
    side, batch, encoder = run.size((129, 4, "resnet50"), (513, 16, "resnet50"), (33, 4, "tu-test_efficientnet"))
    precision: Precision = "bf16" if run.device.type == "cuda" else "fp32"
    loaded = step.loaded_batch(batch, side, 21, run.device)
    results.settings |= {"encoder": encoder, "side, px": side, "batch": f"{batch}+{batch}", "precision": precision}
    sizes = [batch >> shift for shift in range(4) if batch >> shift >= 2]
    peaks: dict[float, list[float]] = {}
    for size in sizes:
        common.settle(run.device)
        before = common.resident_mb(run.device)
        ours = step.Ours(run.device, encoder=encoder, precision=precision, micro_batch_size=size, batch_size=batch)
        peak = common.peak_memory_mb(lambda ours=ours: (ours.take(loaded), ours.take(loaded)), run.device) - before
        peaks[size] = [results.figure(f"micro-batch of {size}+{size}", "MB", peak)]
        del ours
    results.growth_of("memory", "labeled images a micro-batch", "MB", peaks, power_law=False)
    results.ratio(
        "smallest / whole batch", f"micro-batch of {sizes[-1]}+{sizes[-1]}", f"micro-batch of {batch}+{batch}"
    )
    results.note("The peak of two steps above what was in use before networks were built.")


if __name__ == "__main__":
    common.main("memory", __doc__, measure)
