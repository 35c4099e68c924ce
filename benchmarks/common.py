"""How benchmarks measure: warm-up, medians over repeats, and a JSON with what is needed to read the figures."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from semiseg.engine.environment import commit, machine

RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.Namespace:
    """Repeats, threads and the machine's name in the result file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--machine", default="cpu", help="stands in the name of the result file")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


def interleaved(
    candidates: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Median and interquartile range in seconds of each candidate.

    Candidates take turns, so that whatever else the machine does falls on all of them alike: compare by ratio.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, median, high = statistics.quantiles(seconds, n=4)
    return {"median_s": median, "iqr_s": high - low, "repeats": len(seconds)}


def write(suite: str, machine_name: str, results: dict[str, Any]) -> None:
    """Writes results/<suite>--<machine>.json and prints it."""
    record = {
        "suite": suite,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": {"torch": torch.__version__},
        "machine": machine(),
        "results": results,
    }
    text = json.dumps(record, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{suite}--{machine_name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
