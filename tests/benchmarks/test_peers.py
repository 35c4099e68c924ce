"""Adapters without a checkout: nothing of other people's code is here."""

import collections
from pathlib import Path

import peers
import pytest
import torch
from peer_imas import Imas
from peer_unimatch import UniMatch

from semiseg.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [Imas, UniMatch])
def test_a_folder_that_is_no_checkout_is_one_line(kind, tmp_path: Path):
    with pytest.raises(UserError, match=r"is no checkout of github\.com/") as caught:
        kind(tmp_path, CPU)
    assert "\n" not in str(caught.value)


def test_a_package_that_the_checkout_needs_is_named(tmp_path: Path):
    (tmp_path / "needy.py").write_text("import cv2_that_nobody_has\n")
    with pytest.raises(UserError, match="cv2_that_nobody_has"):
        peers.modules("--peer x", tmp_path, ["needy"], "example.org/x")


def test_code_of_another_time_runs_and_leaves_no_trace(tmp_path: Path):
    (tmp_path / "old_times.py").write_text(
        "import collections, numpy as np, torch, pandas, torch.distributed as dist\n"
        "def f():\n"
        "    assert isinstance([], collections.Iterable)\n"
        "    return np.int(3.7), int(np.uint8(-1)), torch.ones(2).cuda(), dist.get_world_size()\n"
    )
    (found,) = peers.modules("--peer x", tmp_path, ["old_times"], "example.org/x")
    with peers.as_written_for(CPU):
        number, wrapped, tensor, processes = found.f()
    assert (number, wrapped, processes) == (3, 255, 1)
    assert tensor.device == CPU
    assert not hasattr(collections, "Iterable")
    assert not torch.distributed.is_initialized()
