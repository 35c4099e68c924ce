"""`semiseg compare`: which recipes it trains, in which order, and how it stops and goes on."""

import json
import os
import shutil
import signal
import sys
import threading
import time

import pytest
from PIL import Image
from rich.console import Console

from semiseg import queue
from semiseg.compare import Entry, compare, entries, plan, train_with_baseline
from semiseg.errors import Interrupted, UserError
from semiseg.recipe.load import changes_of_result, dump, load_recipe, validate
from semiseg.report import table
from semiseg.report.comparison import read, rows_of
from semiseg.runs import Run


@pytest.fixture
def base(recipe):
    labels = {"labeled": {"pool": "jitter"}, "labeled_loss": {"class_weights": "inverse_sqrt"}}
    return validate(recipe(method={"name": "imas", "threshold": 0.3, **labels}), "recipe")


def test_an_entry_of_the_recipes_method_keeps_its_settings(base):
    standard = plan(base, Entry("a", "imas", ("method.loss=standard", "optim.lr=0.5")), 7)
    assert (standard.method.threshold, standard.method.loss) == (0.3, "standard")
    assert (standard.engine.seed, standard.optim.lr, base.optim.lr) == (7, 0.5, pytest.approx(base.optim.lr))
    assert standard.data == base.data


def test_another_method_has_its_own_settings_and_the_same_labeled_images(base):
    other = plan(base, Entry("fixmatch", "fixmatch", ("method.threshold=0.5",)), 0)
    assert (other.method_name, other.method.threshold) == ("fixmatch", 0.5)
    assert other.method.labeled == base.method.labeled
    assert other.method.labeled_loss == base.method.labeled_loss  # what it is worth is no gain from unlabeled images
    assert other.method.unlabeled_weight == 1.0  # its own default


def test_folders_have_names_without_special_characters():
    (one,) = entries("imas:strong={pool: jitter}:optim.lr=0.1")
    assert one.folder == "imas-strong=pool-jitter-optim.lr=0.1"
    assert entries("../x=imas")[0].folder == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write names of methods"),
        ("imas,,supervised", "write names of methods"),
        ("imas:loss", r"write a setting as key=value"),
        ("imas,imas", "has the same name as imas"),
        ("imas:a=b c,imas:a=bc", "has the same name as"),
        ("A=imas,a=supervised", "has the same name as A"),  # some file systems ignore case
        ("\u65e5=imas", "needs a letter or digit of ASCII"),
        ("imas:engine.steps=3", "engine.steps is alike for all methods"),
        ("imas:data.labeled=x", "data.labeled is alike for all methods"),
        ("imas:data.labeled_orders=x", "is alike for all"),
        ("imas:model.encoder=x", "model.encoder is alike for all methods"),
    ],
)
def test_wrong_entries(text, says):
    with pytest.raises(UserError, match=says):
        entries(text)


def test_wrong_methods_and_settings_are_found_before_anything_is_written(base, tmp_path):
    for methods, says in (
        ("supervised,imash", "imash: "),
        ("supervised:threshold=1", "threshold: unknown key"),
        ("supervised,imas:ignore_class=9", "--methods imas:ignore_class=9: method.ignore_class"),
        ([Entry("a", "imas"), Entry("a", "supervised")], "has the same name as a"),
    ):
        with pytest.raises(UserError, match=says):
            compare(base, methods, [0], tmp_path / "out")
    with pytest.raises(UserError, match=r"^data\.root: there is no"):
        compare(base, "supervised", [0], tmp_path / "out", ["data.root=nowhere"])
    assert not (tmp_path / "out").exists()


SCRIPT = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with open(run.parents[1] / "order", "a") as file:
    name, device = f"{run.parent.name}/{run.name}", os.environ.get("CUDA_VISIBLE_DEVICES")
    print(name, device, os.environ["OMP_NUM_THREADS"], file=file)
run.mkdir(exist_ok=True)
(run / "process").write_text(str(os.getpid()))
def records(*steps):
    lines = [json.dumps({"kind": "val", "step": step, "miou": 0.5, "iou": [0.5, 0.5]}) for step in steps]
    (run / "metrics.jsonl").write_text("".join(line + "\\n" for line in lines))
records()
(run / "config.yaml").write_text("x: 1")  # last, as a training does it: it says that the other files are there
if "bad" in str(run):
    records(2)
    print("nothing", flush=True)
    sys.exit("semiseg: data.root: there is no such folder")
if "slow" in str(run):
    import signal
    signal.signal(signal.SIGTERM, lambda *_: (records(3), sys.exit(143)))
    records(1)
    time.sleep(60)
records(4)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """jobs(names) -> jobs whose processes only pretend to train, and the file of their order."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    popen = queue.subprocess.Popen

    def pretend(words, **options):
        assert words[1:4] == ["-m", "semiseg", "train"]
        return popen([sys.executable, "-S", str(script), *words[3:]], **options)

    monkeypatch.setattr(queue.subprocess, "Popen", pretend)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def jobs(*names):
        made = []
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            made.append(queue.Job(name, tmp_path / f"{name}.yaml", Run(tmp_path / name), 4))
        return made

    return jobs


def test_jobs_run_in_their_order_and_a_failure_stops_no_other(jobs, tmp_path, capsys):
    todo = jobs("a/seed-0", "bad/seed-0", "b/seed-0")
    failed = queue.work(todo, Console())
    assert failed == {"bad/seed-0": "semiseg: data.root: there is no such folder"}
    assert [line.split()[0] for line in (tmp_path / "order").read_text().splitlines()] == [job.name for job in todo]
    out = capsys.readouterr().out
    assert out.startswith(f"runs to train: 3; each has a log, first {todo[0].log}\n")
    assert "a/seed-0: mIoU 50.00, 0:00" in out
    assert "bad/seed-0: semiseg: data.root" in out
    assert queue.work(todo[::2], Console()) == {}  # complete: nothing starts again
    assert capsys.readouterr().out == "2 of 2 runs are complete already\n"
    assert len((tmp_path / "order").read_text().splitlines()) == 3


def test_a_killed_training_says_so(jobs, tmp_path):
    (job,) = jobs("slow/seed-0")

    def kill() -> None:
        while job.done < 1:
            time.sleep(0.05)
        os.kill(int((job.run.path / "process").read_text()), signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert "ended by SIGKILL (perhaps not enough memory); see" in queue.work([job], Console(quiet=True))[job.name]


def test_launchers_and_devices_without_a_number(jobs, monkeypatch):
    with pytest.raises(UserError, match="--devices 0,: write numbers"):
        queue.work(jobs("a/seed-0"), Console(quiet=True), devices=["0", ""])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        queue.work(jobs("a/seed-0"), Console(quiet=True))


def test_each_device_trains_one_job_at_a_time(jobs, tmp_path):
    queue.work(jobs(*(f"a/seed-{n}" for n in range(4))), Console(quiet=True), devices=["3", "5"])
    devices = [line.split()[1] for line in (tmp_path / "order").read_text().splitlines()]
    assert sorted(devices) == ["3", "3", "5", "5"]


def test_jobs_at_once_share_the_cores(jobs, tmp_path):
    queue.work(jobs("a/seed-0", "a/seed-1"), Console(quiet=True), at_once=2)
    threads = {line.split()[2] for line in (tmp_path / "order").read_text().splitlines()}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_when_the_time_is_over_the_running_jobs_save(jobs, tmp_path):
    todo = jobs("slow/seed-0", "a/seed-0")
    begin = time.monotonic()
    assert queue.work(todo, Console(quiet=True), until=begin + 2) == {}
    assert time.monotonic() - begin < 20
    assert [job.done for job in todo] == [3, 0]


def test_a_signal_stops_the_queue_after_the_running_jobs_have_saved(jobs):
    todo = jobs("slow/seed-0", "a/seed-0")

    def stop() -> None:
        while todo[0].done < 1:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        queue.work(todo, Console(quiet=True))
    assert [job.done for job in todo] == [3, 0]


def test_two_methods_end_to_end(base, tmp_path, capsys):
    """Two real trainings; the second call only reads. Another recipe in the same folder is refused."""
    small = ["engine.steps=2", "engine.eval_every=2"]
    out, methods = tmp_path / "out", "supervised,plain=imas:loss=standard:intensity=standard:cutmix=standard"
    found = compare(base, methods, [3], out, small, at_once=2)
    assert [(row.name, list(row.results)) for row in found.rows] == [("supervised", [3]), ("plain", [3])]
    assert {path.name for path in out.iterdir()} == {
        "supervised", "plain", *(f"comparison.{suffix}" for suffix in ("txt", "csv", "tex", "json")),
    }  # fmt: skip
    runs = [Run(out / name / "seed-3") for name in ("supervised", "plain")]
    assert load_recipe(runs[1].config).method.loss == "standard"
    assert dump(load_recipe(runs[1].config)) == (out / "plain/seed-3.yaml").read_text()
    parameters = [run.environment()["trained_parameters"] for run in runs]
    assert parameters[0] == parameters[1] > 1000  # the teacher is not trained
    saved = json.loads((out / "comparison.json").read_text())
    again = compare(base, methods, [3], out, small)
    assert again == found
    assert json.loads((out / "comparison.json").read_text()) == saved
    (tmp_path / "less.txt").write_text("".join((base.data.root / base.data.unlabeled).read_text().splitlines(True)[1:]))
    with pytest.raises(UserError, match=r"holds a run o[nf]"):
        compare(base, methods, [3], out, [*small, f"data.unlabeled={tmp_path / 'less.txt'}"])
    moved = tmp_path / "moved"
    shutil.copytree(base.data.root, moved)
    (moved / base.data.unlabeled).write_text((tmp_path / "less.txt").read_text())
    with pytest.raises(UserError, match="holds a run on other images than"):  # data.root may change, images not
        compare(base, methods, [3], out, [*small, f"data.root={moved}"])
    (moved / base.data.unlabeled).write_text((base.data.root / base.data.unlabeled).read_text())
    mask = moved / "masks" / f"{(moved / base.data.labeled).read_text().split()[0]}.png"
    Image.open(mask).point(lambda value: 1).save(mask)
    with pytest.raises(UserError, match="holds a run on other masks than"):  # rows would not be of the same labels
        compare(base, methods, [3], out, [*small, f"data.root={moved}"])
    with pytest.raises(UserError, match=r"holds a run of another recipe \(engine.steps: 2 -> 3\)"):
        compare(base, methods, [3], out, ["engine.steps=3", "engine.eval_every=2"])


def test_a_method_with_stages_stands_in_the_tables_with_its_last_one(base, tmp_path):
    """Three trainings of one seed; the masks of a later one are no labels. Later calls only read."""
    small, out = ["engine.steps=3", "engine.eval_every=3", "data.labeled_order=shuffled"], tmp_path / "out"
    found = compare(base, "supervised,st_pp:cutout=0", [1], out, small)
    assert [(row.name, list(row.results)) for row in found.rows] == [("supervised", [1]), ("st_pp:cutout=0", [1])]
    folder = out / "st_pp-cutout=0/seed-1"
    assert [load_recipe(folder / f"stage-{n}/config.yaml").engine.seed for n in (1, 2, 3)] == [1, 1, 1]
    assert found.rows[1].results[1].last == Run(folder / "stage-3").last()["miou"]
    told = [
        line for line in (out / "comparison.txt").read_text().splitlines() if "learned masks that an earlier" in line
    ]
    assert [line.partition(":")[0] for line in told] == ["st_pp"]
    assert (folder.parent / "seed-1.log").exists()
    assert not list(folder.glob("*.log"))
    assert compare(base, "supervised,st_pp:cutout=0", [1], out, small) == found
    assert [row.name for row in compare(base, "supervised", [1], out, small).rows] == ["supervised", "st_pp:cutout=0"]
    assert read(rows_of([out])).protocol == found.protocol
    assert list(rows_of([out])) == ["supervised", "st_pp-cutout=0"]
    assert [run.path for run in rows_of([out])["st_pp-cutout=0"]] == [folder / "stage-3"]
    assert list(rows_of([folder / "stage-1"])) == ["st_pp-cutout=0"]  # one that is named
    with pytest.raises(UserError, match="holds a run of another recipe"):
        compare(base, "supervised,st_pp:cutout=0", [1], out, [*small, "optim.lr=0.5"])
    with pytest.raises(UserError, match=r"holds a run of another comparison \(optim.lr"):
        compare(base, "supervised", [2], out, [*small, "optim.lr=0.5"])
    mask = min((folder / "pseudo-2").rglob("*.png"))
    Image.open(mask).point(lambda value: 1).save(mask)
    with pytest.raises(UserError, match="holds a run on other masks than"):
        compare(base, "supervised", [1], out, small)


def test_wrong_settings_of_a_method_with_stages_are_found_before_anything_is_written(base, tmp_path):
    with pytest.raises(UserError, match=r"--methods st_pp: engine.steps: 2 cannot be divided into thirds"):
        compare(base, "st_pp", [0], tmp_path / "out", ["engine.steps=2", "engine.eval_every=2"])
    assert not (tmp_path / "out").exists()


def test_complete_runs_of_earlier_calls_stay_in_the_tables(base, tmp_path):
    small, out = ["engine.steps=1", "engine.eval_every=1"], tmp_path / "out"
    compare(base, "best one=supervised", [0], out, small)
    found = compare(base, "supervised", [1], out, small)
    assert [(row.name, list(row.results)) for row in found.rows] == [("supervised", [1]), ("best one", [0])]
    found = compare(base, "supervised", [0], out, small)
    assert [(row.name, list(row.results)) for row in found.rows] == [("supervised", [0, 1]), ("best one", [0])]
    shutil.copytree(out / "bestone/seed-0", out / "bestone/seed-0-copy")
    (out / "comparison.json").write_text("[]")  # its names are lost
    found = compare(base, "supervised", [0], out, small)
    assert [row["name"] for row in json.loads((out / "comparison.json").read_text())["rows"]] == [
        "supervised",
        "bestone",
    ]
    texts = {path: path.read_text() for path in out.glob("comparison.*")}
    for methods, settings, says in (
        (
            "cps",
            ["engine.steps=2", "engine.eval_every=1"],
            r"seed-0: holds a run of another .* \(engine.steps: 1 -> 2\)",
        ),
        ("cps", [*small, "model.encoder=resnet34"], r"model.encoder: .* -> resnet34"),
        ("supervised=cps", small, r"supervised/seed-0: holds a run of another .*method.name: supervised -> cps"),
    ):
        with pytest.raises(UserError, match=says):
            compare(base, methods, [5], out, settings)
        assert {path: path.read_text() for path in out.glob("comparison.*")} == texts
    (out / "bestone/seed-0/metrics.jsonl").write_text("")
    found = compare(base, "supervised", [0], out, small)  # a run that was given up is no row
    assert [row.name for row in found.rows] == ["supervised"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"bestone", "supervised"}


def test_when_the_time_is_over_the_tables_say_what_is_incomplete(base, tmp_path):
    small, out = ["engine.steps=1", "engine.eval_every=1"], tmp_path / "out"
    compare(base, "earlier=supervised", [9], out, small)
    compare(base, "supervised", [0], out, small)
    found = compare(base, "supervised,cps", [0, 3], out, small, minutes=0.0)
    assert [(row.name, [*row.results], dict(row.unfinished)) for row in found.rows] == [
        ("supervised", [0], {3: 0}),
        ("cps", [], {0: 0, 3: 0}),
        ("earlier", [9], {}),
    ]
    text = (out / "comparison.txt").read_text()
    assert "incomplete: 3 of 5 runs" in text
    assert "not counted: cps with seed 3, 0 of 1 steps" in text


def test_when_it_is_interrupted_the_tables_have_what_is_complete(base, tmp_path, monkeypatch):
    small, out = ["engine.steps=1", "engine.eval_every=1"], tmp_path / "out"
    real = queue.work

    def interrupted(jobs, *settings):
        real(jobs[:complete], *settings)
        raise Interrupted("stopped by SIGTERM", signal.SIGTERM)

    monkeypatch.setattr(queue, "work", interrupted)
    for complete in (0, 1):
        with pytest.raises(Interrupted):
            compare(base, "supervised,cps", [0], out, small)
        assert (out / "comparison.txt").exists() == bool(complete)
    assert "not counted: cps with seed 0, 0 of 1 steps" in (out / "comparison.txt").read_text()


def test_two_comparisons_in_one_folder(base, tmp_path, another_process_in):
    out = tmp_path / "out"
    with another_process_in(out) as pid:
        with pytest.raises(UserError, match=rf"^{out}: process {pid} on .* trains here; wait for it"):
            compare(base, "supervised", [0], out, ["engine.steps=1"])
        assert [path.name for path in out.iterdir()] == ["train.lock"]
    compare(base, "supervised", [0], out, ["engine.steps=1"])  # one that was killed holds nothing
    assert not (out / "train.lock").exists()


def test_a_baseline_beside_a_training(base, tmp_path):
    """All but the method is alike, so it starts from the same weights and sees the same labeled images."""
    out = tmp_path / "run"
    changes = ["engine.steps=2", "engine.eval_every=2"]
    run, baseline = train_with_baseline(base, out, changes)
    assert (run.path, baseline.path) == (out, tmp_path / "run-baseline")
    supervised = load_recipe(baseline.config)
    assert (supervised.method_name, supervised.of_labels) == ("supervised", base.of_labels)
    assert supervised.method.labeled_loss.class_weights == "inverse_sqrt"
    assert {change.partition(".")[0] for change in changes_of_result(load_recipe(run.config), supervised)} == {"method"}
    page = Console(width=100)
    with page.capture() as captured:
        page.print(table.worth(run, baseline, table.class_names(run)))
    assert f"{100 * run.last()['miou']:.2f}" in captured.get()
    gone = tmp_path / "moved"
    shutil.copytree(base.data.root, gone)
    listed = gone / base.data.unlabeled
    listed.write_text("".join(listed.read_text().splitlines(True)[1:]))
    shutil.rmtree(out)
    for mistake, settings in (
        ("holds a run on other images than", [f"data.root={gone}"]),
        ("exists already and is not empty", []),
    ):
        with pytest.raises(UserError, match=rf"run-baseline: {mistake}"):
            train_with_baseline(base, out, [*changes, *settings])
        assert not out.exists()  # it was said at once, not after a training
        shutil.rmtree(baseline.path)
        baseline.path.mkdir()
        (baseline.path / "notes.txt").touch()
    with pytest.raises(UserError, match="trains supervised itself"):
        train_with_baseline(supervised, out)
