"""Every benchmark runs, at sizes that mean nothing, and measures what its targets are about."""

from collections.abc import Iterator
from pathlib import Path

import checkpoint
import common
import evaluation
import gpu
import hardness
import inputs
import loader
import pytest
import startup
import step
import targets
import torch
import views
from photographs import MASKS, photographs

from semiseg.errors import UserError

SMALL = (  # a step in a moment, on any CPU
    "model={architecture: unet, encoder: tu-test_efficientnet, weights: null}", "data.crop=32", "data.workers=0",
    "engine.batch_size=2", "engine.precision=fp32",
)  # fmt: skip
MODULES = {"hardness": hardness, "views": views, "inputs": inputs, "loader": loader, "checkpoint": checkpoint,
           "evaluation": evaluation, "step": step}  # fmt: skip


@pytest.fixture(scope="module")
def voc() -> Iterator[Path]:
    """The photographs of all suites: drawing them takes longer than most suites."""
    with photographs(None, 12) as photos:
        (photos.root / "SegmentationClass").symlink_to(MASKS)
        yield photos.root


@pytest.fixture
def run(tmp_path: Path, voc: Path) -> common.Settings:
    words = ["--tiny", "--repeats", "1", "--data", str(voc), "--out", str(tmp_path)]
    return common.arguments("Title.", [*words, "--threads", str(torch.get_num_threads())])


@pytest.mark.parametrize("suite", MODULES)
def test_a_suite_runs_without_peers(suite: str, run: common.Settings):
    module = MODULES[suite]
    path = common.run_suite(suite, str(module.__doc__), module.measure, run)
    record = common.Record.model_validate_json(path.read_text())
    assert record.figures
    assert record.growth
    assert record.peers == {}
    assert all(figure.median > 0 for figure in record.figures if not figure.name.endswith(("memory", "difference")))


def test_a_first_step_is_waited_for():
    with photographs(None, 8) as photos:
        assert startup.first_step(photos.root, *SMALL) > 0.5


def test_start_up_is_measured_beyond_imports(run: common.Settings, monkeypatch):
    kept = ("import torch", "semiseg --help", "semiseg methods", "import everything that trains")
    monkeypatch.setattr(startup, "COMMANDS", dict.fromkeys(kept, ("-c", "pass")))
    monkeypatch.setattr(startup, "first_step", lambda root: 5.0)
    startup.measure(run, results := common.Results(run))
    assert 4 < results.figures["the same beyond imports"].median < 5
    assert {ratio.name for ratio in results.ratios} >= {
        target.ratio for target in targets.TARGETS if target.suite == "startup"
    }


def test_phases_are_charged_to_the_innermost():
    phases = step.Phases(torch.device("cpu"))
    wait = torch.ones(300, 300)
    with phases.phase("outer"):
        with phases.phase("inner"):
            for _ in range(50):
                wait @ wait
        with phases.phase("outer"):  # inside itself: not another one
            pass
    assert set(phases.seconds) == {"outer", "inner"}
    assert 0 <= phases.seconds["outer"] < phases.seconds["inner"]


def test_the_profile_of_a_step_covers_every_phase(run: common.Settings):
    results = common.Results(run)
    step.profile(run, results, step.Ours(run.device, encoder="tu-test_efficientnet"), (33, 2))
    assert [phase.name for phase in results.phases] == [
        "input wait", "views", "hardness forwards", "hardness", "mixing", "student forward", "losses", "backward",
        "optimizer", "EMA", "everything else",
    ]  # fmt: skip
    assert all(phase.median > 0 for phase in results.phases)
    assert sum(phase.share for phase in results.phases) == pytest.approx(1)


def test_drawn_photographs_can_be_read_as_a_dataset():
    with photographs(None, 8) as photos:
        images, settings = loader.dataset(photos, 32, 0)
        assert photos.long_side == 500
        assert (len(images.labeled), len(images.unlabeled), len(images.val)) == (2, 5, 1)
        assert photos.open(photos.labeled[0])[0].size == (500, 375)
    assert not settings.root.exists()


def test_a_folder_with_too_few_images_is_refused(tmp_path: Path):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(UserError, match="0 JPEG images"), photographs(tmp_path, 8):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_list_is_refused_in_one_line_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_gpu_list_can_be_rehearsed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gpu, "SUITES", (("hardness", hardness),))
    settings, _ = gpu.arguments(["--rehearse", "--repeats", "1", "--out", str(tmp_path)])
    paths = gpu.run_all(settings, 5)
    assert [path.name for path in paths] == ["correctness--rehearsal.json", "hardness--rehearsal.json"]
    assert common.read(tmp_path)[0].ratios[0].value == 0


def test_time_that_runs_out_leaves_what_was_measured(tmp_path: Path, monkeypatch):
    class Endless:
        __doc__ = "Never ends."

        @staticmethod
        def measure(run: common.Settings, results: common.Results) -> None:
            results.figure("a", "s", 1.0)
            while True:
                torch.ones(10).sum()

    monkeypatch.setattr(gpu, "SUITES", (("endless", Endless),))
    monkeypatch.setattr(gpu, "correctness", lambda run, results: (
        results.figure("a", "1", 1.0), results.ratio("a", "a", "a")))  # fmt: skip
    settings, _ = gpu.arguments(["--rehearse", "--out", str(tmp_path)])
    _, path = gpu.run_all(settings, 1.2 / 60)
    record = common.Record.model_validate_json(path.read_text())
    assert record.figures[0].name == "a"
    assert "Cut off" in record.notes[0]
