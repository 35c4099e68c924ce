"""Every benchmark runs, at sizes that mean nothing, and measures what its targets are about."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import carry
import checkpoint
import common
import evaluation
import gpu
import hardness
import inputs
import loader
import memory
import methods
import pages
import predict
import pytest
import report
import smoke
import startup
import step
import targets
import torch
import training
import views
from photographs import MASKS, photographs

from semiseg.errors import UserError

SMALL = (  # a step in a moment, on any CPU
    "model={architecture: unet, encoder: tu-test_efficientnet, weights: null}", "data.crop=32", "data.workers=0",
    "engine.batch_size=2", "engine.precision=fp32",
)  # fmt: skip
MODULES = {"hardness": hardness, "views": views, "inputs": inputs, "loader": loader, "checkpoint": checkpoint,
           "evaluation": evaluation, "step": step, "memory": memory, "smoke": smoke, "pages": pages,
           "predict": predict}  # fmt: skip


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


LONG = ("smoke",)  # it starts processes and takes the same steps four times


@pytest.mark.parametrize("suite", [pytest.param(name, marks=[pytest.mark.soak] * (name in LONG)) for name in MODULES])
def test_a_suite_runs_without_peers(suite: str, run: common.Settings):
    module = MODULES[suite]
    path = common.run_suite(suite, str(module.__doc__), module.measure, run)
    record = common.Record.model_validate_json(path.read_text())
    assert record.figures
    assert bool(record.growth) == (suite != "smoke")
    assert record.peers == {}
    may_be_zero = ("memory", "difference", "of a loss", "first step", "overflow", "of a sum over the group")
    assert all(figure.median > 0 for figure in record.figures if not figure.name.endswith(may_be_zero))


@pytest.mark.parametrize(("name", "wanted"), [
    ("supervised", methods.Passes(0, 0, 2, 2, 0, 0)),
    ("fixmatch", methods.Passes(2, 2, 4, 4, 0, 0)),
    ("imas", methods.Passes(encoded=4, decoded=4, trained=6, refined=6, teacher=2, others=0)),
    ("st_pp", methods.Passes(0, 0, 4, 4, 0, 0)),
    ("cps", methods.Passes(0, 0, 8, 8, 0, 0)),  # two students, and all pixels
    ("cct", methods.Passes(0, 0, 4, 4, 0, 64)),  # 30 decoders beside, two of them once more for adversarial noise
    ("ps_mt", methods.Passes(4, 4, 4, 4, 4, 4)),  # both teachers predict, and both decoders look for the noise
    ("u2pl", methods.Passes(8, 8, 4, 4, 8, 12)),  # a teacher twice on labeled and unlabeled images; heads beside
    ("unimatch", methods.Passes(2, 2, 8, 10, 0, 0)),  # the view of perturbed features needs no encoder
])  # fmt: skip
def test_passes_of_a_step_are_counted(run: common.Settings, name: str, wanted: methods.Passes):
    ours = step.Ours(run.device, method=name, encoder="tu-test_efficientnet")
    ours.taken = methods.AT
    loaded = methods.batch_for(ours, step.loaded_batch(2, 33, 21, run.device))
    with methods.counting(ours) as (counted, _):
        ours.take(loaded)
        assert counted() == wanted
    ours.take(loaded)
    assert counted() == wanted  # what is taken outside does not count


def test_needed_time_counts_encoders_and_decoders_apart():
    passes = methods.Passes(encoded=2, decoded=2, trained=3, refined=5, teacher=0, others=7)
    costs = methods.Costs(forward=2.0, both=6.0, decoder_forward=0.5, decoder_both=1.0)
    assert costs.needed(passes) == 2 * 1.5 + 2 * 0.5 + 3 * 5.0 + 5 * 1.0


def test_the_table_of_methods_flags_what_takes_longer_than_its_passes(run: common.Settings, monkeypatch):
    monkeypatch.setattr(methods.methods, "names", lambda: ("fixmatch", "supervised"))
    seconds = {"step": 1.2, "supervised": 0.5, "forward": 0.2, "both": 0.8, "decoder_forward": 0.1, "decoder_both": 0.4}
    monkeypatch.setattr(common, "interleaved", lambda made, *_: {name: [seconds[name]] for name in made})
    results = common.Results(run)
    methods.measure(run, results)
    record = results.record("methods", "Title")
    # two images: forward 0.1 s, forward and backward 0.2 s an image; fixmatch needs 2 and 4, supervised 2
    found = {each.name: each.median for each in record.figures}
    assert found["fixmatch, needed"] == pytest.approx(2 * 0.1 + 4 * 0.2)
    assert found["supervised, needed"] == pytest.approx(2 * 0.2)
    table = [line for line in report.section(record) if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table] == ["| method", "| ---", "| supervised", "| fixmatch"]
    assert table[2].endswith("| 2.40 | 3.00 | above 1.10 |")
    assert table[3].endswith("| 2.40 | 1.20 | above 1.10 |")
    assert "Above 1.10 times what is needed: supervised, fixmatch." in record.notes
    seconds["step"] = 1.05
    methods.measure(run, again := common.Results(run))
    assert "Above 1.10 times what is needed: supervised." in again.record("methods", "Title").notes


def test_what_other_parts_need_is_added(run: common.Settings, monkeypatch):
    monkeypatch.setattr(methods.methods, "names", lambda: ("fixmatch", "gct", "supervised"))
    seconds = {"step": 2.4, "supervised": 0.5, "forward": 0.2, "both": 0.8, "decoder_forward": 0.1, "decoder_both": 0.4,
               "other 0": 0.25, "other 1": 0.0625}  # fmt: skip
    monkeypatch.setattr(common, "interleaved", lambda made, *_: {name: [seconds[name]] for name in made})
    results = common.Results(run)
    methods.measure(run, results, only=["gct"])
    # two networks see four images, 0.2 s each; the detector sees each prediction twice, once with fixed weights
    assert results.figures["gct, needed by other parts"].median == 2 * 0.25 + 2 * 0.0625
    assert results.figures["gct, needed"].median == pytest.approx(8 * 0.2 + 0.625)
    assert [ratio.value for ratio in results.ratios if ratio.name.endswith("needed")] == pytest.approx([2.4 / 2.225])
    assert {name.partition(",")[0] for name in results.figures} == {"gct"}  # the only one that was asked for
    assert "Above 1.10 times what is needed: none." in results.notes


def test_some_methods_alone_can_be_measured(tmp_path: Path):
    words = ["--out", str(tmp_path), "--threads", str(torch.get_num_threads())]
    settings, names = methods.arguments([*words, "--method", "cct", "--method", "gct"])
    assert settings.out == tmp_path
    assert names == ["cct", "gct"]
    assert methods.arguments(words)[1] == []  # all
    with pytest.raises(UserError, match="no such method; choose from ael, "):
        methods.arguments([*words, "--method", "ctt"])
    with pytest.raises(UserError, match="name a folder with --out"):
        methods.arguments(["--method", "cct"])


@pytest.mark.soak
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


def test_the_gpu_list_names_the_most_valuable_first():
    names = [each.suite for each in gpu.LIST]
    assert names == ["correctness", "step", "views", "hardness", "memory", "smoke", "training"]
    assert sum(each.seconds for each in gpu.LIST[:-1]) < 9 * 60 * 3 / 4  # a quarter is left to train in
    assert {target.suite for target in targets.TARGETS if target.on == "gpu"} - set(names) == {"loader", "evaluation"}


def test_the_gpu_list_can_be_rehearsed(tmp_path: Path):
    names = ["correctness", "hardness"]
    words = ["--rehearse", "--repeats", "1", "--out", str(tmp_path), "--commit", "abc"]
    settings, minutes, entries = gpu.arguments([*words, *(word for name in names for word in ("--suite", name))])
    assert minutes == 9
    paths = gpu.run_all(settings, 5, entries)
    assert [path.name for path in paths] == ["correctness--rehearsal.json", "hardness--rehearsal.json"]
    first, second = common.read(tmp_path)
    assert first.ratios[0].value == 0
    assert first.commit == "abc"
    assert second.figures
    assert not second.growth  # the list is brief


def test_what_runs_out_of_time_or_fails_leaves_what_it_has_and_the_next_one_follows(tmp_path: Path):
    def endless(run: common.Settings, results: common.Results) -> None:
        results.figure("a", "s", 1.0)
        while True:
            torch.ones(10).sum()

    def failing(run: common.Settings, results: common.Results) -> None:
        raise KeyError("b")

    def last(run: common.Settings, results: common.Results) -> None:
        results.figure("seconds", "s", run.seconds)

    settings, *_ = gpu.arguments(["--rehearse", "--out", str(tmp_path)])
    suites = (("endless", endless, 0.2), ("failing", failing, 5), ("last", last, float("inf")))
    paths = gpu.run_all(settings, 1, tuple(gpu.Entry(name, name, measure, most) for name, measure, most in suites))
    records = [common.Record.model_validate_json(path.read_text()) for path in paths]
    assert records[0].figures[0].name == "a"
    assert records[0].notes == ["Cut off after 0 s: what is missing was not measured."]
    assert records[1].notes == ["Failed: KeyError: 'b'"]
    assert 55 < records[2].figures[0].median < 60  # all that is left
    assert gpu.run_all(settings, 0, gpu.LIST) == []


@pytest.mark.soak
def test_training_takes_as_many_steps_as_the_time_allows(run: common.Settings, monkeypatch):
    results = common.Results(replace(run, seconds=30.0, data=None))
    training.measure(results.run, results)
    last = [results.figures[f"{name}, mIoU, last"].median for name in training.METHODS]
    assert all(0 <= value <= 1 for value in last)
    assert [growth.points[-1].size for growth in results.growth] == [4, 4]
    with pytest.raises(UserError, match="--seconds"):
        training.measure(run, results)


def test_a_folder_to_carry(tmp_path: Path):
    for name in ("JPEGImages", "SegmentationClass", "splits"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for number, name in enumerate(carry.LISTS):
        (tmp_path / "voc/splits" / f"{name}.txt").write_text(f"{number}\n")
        (tmp_path / "voc/JPEGImages" / f"{number}.jpg").touch()
        (tmp_path / "voc/SegmentationClass" / f"{number}.png").touch()
    for path in ("imas/a.py", ".git/config.txt", "picture.png"):
        (tmp_path / "peer" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "peer" / path).touch()
    folder = tmp_path / "carry"
    carry.carry(folder, tmp_path / "voc", {"imas": tmp_path / "peer"}, (), "3.12")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    images = {f"voc-mini/JPEGImages/{number}.jpg" for number in range(3)}
    masks = {f"voc-mini/SegmentationClass/{number}.png" for number in (0, 2)}
    lists = {f"voc-mini/splits/{name}.txt" for name in carry.LISTS}
    assert found == {"run.sh", "peers/imas/imas/a.py", "peers/imas/COMMIT", *images, *masks, *lists}
    script = (folder / "run.sh").read_text()
    assert '--data "$here/voc-mini" --peer imas="$here/peers/imas" "$@"' in script
    assert subprocess.run(["bash", "-n", folder / "run.sh"]).returncode == 0
    with pytest.raises(UserError, match="exists already"):
        carry.carry(folder, None, {}, (), "3.12")
    with pytest.raises(UserError, match="has no splits/labeled_83"):
        carry.carry(tmp_path / "other", tmp_path / "peer", {}, (), "3.12")
