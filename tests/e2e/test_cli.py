"""Every command, as a user calls it, from the files that it reads to those that it writes."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from safetensors.torch import save_file

from semiseg import cli, methods
from semiseg.data.partitions import partition_hash
from semiseg.engine import progress
from semiseg.engine.setup import build_method
from semiseg.percent import percent
from semiseg.recipe import file as recipe_file
from semiseg.recipe.load import dump, load_recipe, validate
from semiseg.runs import Run
from semiseg.scenes import CLASSES
from semiseg.types import ClassTable

COMMANDS = (
    "demo",
    "train",
    "check",
    "evaluate",
    "predict",
    "pseudo-label",
    "self-train",
    "export",
    "recipes",
    "paper-recipes",
    "methods",
    "partitions",
)


def numbers(table: str) -> dict[str, str]:
    """The first two columns of a printed table."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) >= 2}


@pytest.fixture
def vivid(trained, tmp_path: Path) -> Path:
    """A copy of the trained run whose networks see several classes in every image."""
    copy = shutil.copytree(trained, tmp_path / "vivid")
    method = build_method(load_recipe(copy / "config.yaml"), ClassTable.of(CLASSES))
    for name, parameter in method.named_parameters():
        if "segmentation_head" in name and name.endswith("weight"):
            parameter.data *= 100
    for file in copy.glob("checkpoints/*/model.safetensors"):
        save_file(method.state_dict(), file)
    return copy


# help


def test_the_version(semiseg):
    import semiseg as package

    assert package.__version__ == version("semiseg")
    assert semiseg("--version").out == f"{package.__version__}\n"
    assert semiseg("--version").code == 0


def test_help_names_every_command(semiseg):
    result = semiseg("--help")
    assert (result.code, result.err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^│ {command} +[A-Z]\w+ .*\.", result.out, re.MULTILINE), command
    assert "semiseg demo" in result.out  # where to start


def test_no_command_shows_the_help(semiseg):
    result = semiseg("")
    assert "Usage: semiseg" in result.out + result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_every_parameter(semiseg, command):
    result = semiseg(f"{command} --help")
    assert (result.code, result.err) == (0, "")
    assert f"Usage: semiseg {command}" in result.out
    about = typer.main.get_command(cli.app).commands[command]
    assert about.help.split("\n")[0] in " ".join(result.out.split())
    for parameter in about.params:
        assert parameter.help, f"{command} {parameter.name}"
        assert parameter.help in result.out


@pytest.mark.parametrize(
    ("typed", "completed"), [("semiseg tr", "train"), ("semiseg train --dry", "--dry-run"), ("semiseg reci", "recipes")]
)
def test_the_shell_completes(semiseg, monkeypatch, typed, completed):
    """What the script of `semiseg --install-completion` asks for, in bash."""
    for name, value in {"_SEMISEG_COMPLETE": "complete_bash", "COMP_WORDS": typed}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))  # the word to complete
    assert semiseg("").out.split() == [completed]


def test_help_does_not_wait_for_torch():
    code = """
import sys
from semiseg import cli
for command in ("", *sys.argv[1:]):
    sys.argv = ["semiseg", *command.split(), "--help"]
    try:
        cli.main()
    except SystemExit as exited:
        assert not exited.code
    heavy = {"torch", "torchvision", "numpy", "PIL", "segmentation_models_pytorch"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "100000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_waiting_threads_leave_the_cores_to_others(semiseg, monkeypatch, given, spins):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert semiseg("--help").code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_installed_as_a_command(here):
    done = subprocess.run(
        [Path(sys.executable).with_name("semiseg"), "train", "nothing.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "semiseg: nothing.yaml: there is no such recipe; name a file, or one that `semiseg recipes` lists\n"
    )
    assert done.stdout == ""


def test_methods_lists_all_with_a_sentence(semiseg):
    result = semiseg("methods")
    assert (result.code, result.err) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in result.out.splitlines()[1:])
    assert set(listed) == set(methods.names())
    assert all(len(sentence) > 20 for sentence in listed.values())


# recipes

WITHOUT_TORCH = """
import sys
from semiseg import cli
sys.argv = ["semiseg", *sys.argv[1:]]
try:
    cli.main()
finally:
    assert not {"torch", "torchvision", "numpy", "segmentation_models_pytorch"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("command", "code"), [("recipes", 0), ("recipes voc", 0), ("recipes voc --out my.yaml", 0), ("train voc2", 2)]
)
def test_recipes_do_not_wait_for_torch(here, command, code):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command.split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1 if code else 0), done.stderr


def test_recipes_lists_all_with_a_line_each(semiseg, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # no line is broken where a terminal is that wide
    result = semiseg("recipes")
    assert (result.code, result.err) == (0, "")
    table, advice = result.out.rstrip().split("\n\n")
    listed = dict(line.split(maxsplit=1) for line in table.splitlines()[1:])
    assert list(listed) == list(recipe_file.shipped())
    assert next(iter(listed)) == "folder"  # what a newcomer needs
    assert all(re.fullmatch(r"\w.{20,}\.", line.strip()) for line in listed.values())
    assert "CPU" in listed["camvid-cpu"]
    for line in advice.splitlines():  # both are commands
        assert re.fullmatch(r"(train|edit) one: semiseg (train|recipes) folder .*", line)


@pytest.mark.parametrize("name", recipe_file.shipped())
def test_recipes_prints_one(semiseg, name):
    result = semiseg(f"recipes {name}")
    assert (result.code, result.err) == (0, "")
    assert result.out == recipe_file.shipped()[name].read_text()


def test_a_recipe_is_written_to_a_file(semiseg, here):
    done = semiseg("recipes official/voc --out 'my recipe.yaml'")
    assert (done.code, done.err) == (0, "")
    assert (here / "my recipe.yaml").read_text() == recipe_file.shipped()["official/voc"].read_text()
    assert done.out == "my recipe.yaml written; edit it, then: semiseg train 'my recipe.yaml'\n"
    says = semiseg(done.out.strip().partition("then: semiseg ")[2]).err
    assert says.startswith("semiseg: data.root: there is no VOCdevkit/VOC2012 below")


def test_a_recipe_is_trained_by_its_name(semiseg, here, scenes):
    """From any directory: what is relative in it is relative to the current one."""
    shutil.copytree(scenes, here / "photos")
    small = "--set engine.steps=1 --set engine.batch_size=2 --set engine.precision=fp32"
    small += " --set 'model={architecture: unet, encoder: tu-test_efficientnet, weights: null}'"
    done = semiseg(f"train folder {small} --set data.crop=32 --set data.workers=0")
    assert (done.code, done.err) == (0, "")
    assert "run directory: runs/folder" in done.out
    assert load_recipe(Path("runs/folder/config.yaml")).data.root == Path("photos")

    done = semiseg(f"train official/voc {small} --set 'data={{layout: folder, root: photos, crop: 32, workers: 0}}'")
    assert (done.code, done.err) == (0, "")
    assert "run directory: runs/official-voc" in done.out
    assert load_recipe(Path("runs/official-voc/config.yaml")).method.boxes == "official"

    done = semiseg("partitions folder --out splits --size 5")
    assert (done.code, done.err) == (0, "")
    assert Path("splits/labeled_5.txt").is_file()


def test_a_file_goes_before_a_recipe_of_its_name(semiseg, here):
    (here / "recipe.yaml").rename("folder")
    done = semiseg("train folder --set engine.steps=1 --set engine.seed=7")
    assert (done.code, done.err) == (0, "")
    assert load_recipe(Path("runs/folder/config.yaml")).model.encoder == "tu-test_efficientnet"


# train


def test_the_whole_way(semiseg, here, scenes):
    """train, evaluate and predict, with the architecture of the paper and a usual encoder."""
    done = semiseg(
        "train recipe.yaml --out runs/first --set model.architecture=deeplabv3plus --set model.encoder=resnet18 "
        "--set 'model.options={decoder_channels: 16}' --set engine.steps=2 --set engine.eval_every=1"
    )
    assert (done.code, done.err) == (0, "")
    assert "6 labeled, 8 unlabeled, 4 validation images" in done.out
    assert "run directory: runs/first" in done.out
    run = Run(Path("runs/first"))
    assert [record["step"] for record in run.metrics("val")] == [1, 2]

    done = semiseg("evaluate runs/first")
    assert (done.code, done.err) == (0, "")
    shown, last = numbers(done.out), run.last()
    assert shown == {
        "class": "IoU, %",
        **{name: percent(iou) for name, iou in zip(CLASSES, last["iou"], strict=True)},
        "mIoU": percent(last["miou"]),
        "pixel accuracy": percent(last["accuracy"]),
    }

    done = semiseg(f"predict runs/first {scenes}/images/val --out masks")
    assert (done.code, done.err) == (0, "")
    assert "4 masks and overlays written to masks" in done.out
    assert len(list(Path("masks").glob("[0-9]*.png"))) == 8


def test_what_train_prints_and_where_it_writes(semiseg, here):
    done = semiseg("train recipe.yaml --set engine.steps=2 --set engine.log_every=1")
    assert (done.code, done.err) == (0, "")
    run = Run(Path("runs/recipe"))  # runs/<name of the recipe>
    table = numbers(done.out)
    assert table["mIoU, last"] == percent(run.last()["miou"])
    assert table["mIoU, best (step)"] == f"{percent(run.best()['miou'])} ({run.best()['step']})"
    assert [table[name] for name in CLASSES] == [percent(iou) for iou in run.last()["iou"]]
    (line,) = re.findall(r"recipe: step .*", done.out)  # it was done before another line was due
    words = re.fullmatch(
        r"recipe: step 2 of 2  mIoU (.*) \(student (.*)\)  loss .*  easiness [\d.]+  [\d.]+ img/s", line
    )
    assert words[1] == percent(run.last()["miou"])
    assert words[2] == table["mIoU of student, last"] == percent(run.last()["networks"]["student"]["miou"])


def test_the_run_directory(trained, recipe, scenes):
    assert {path.name for path in trained.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "events.jsonl",
        "hardness.csv",
        "unlabeled.txt",
        "masks.json",
        "checkpoints",
        "pictures",
    }
    loaded = load_recipe(trained / "config.yaml")
    assert loaded == validate(recipe(), "recipe")  # itself a valid recipe, of the same run
    assert dump(loaded) == (trained / "config.yaml").read_text()

    environment = json.loads((trained / "environment.json").read_text())
    assert environment["versions"]["torch"] == version("torch")
    assert environment["versions"]["semiseg"] == version("semiseg")
    if environment["commit"] is not None:  # a checkout
        assert re.fullmatch(r"(.+-g)?[0-9a-f]{12,40}(-dirty)?", environment["commit"])
    labels = (scenes / "splits" / "labeled.txt").read_text().split()
    assert environment["labels"] == {
        "labeled": 6,
        "unlabeled": 8,
        "val": 4,
        "partition": partition_hash(labels),
        "published": None,
        "val_partition": partition_hash((scenes / "splits" / "val.txt").read_text().split()),
    }

    run = Run(trained)
    assert [record["step"] for record in run.metrics("train")] == [2, 4]
    assert {"loss", "labeled", "unlabeled", "easiness", "lr", "images_per_second"} <= run.metrics("train")[0].keys()
    assert [record["step"] for record in run.metrics("val")] == [2, 4]
    assert all(len(record["iou"]) == len(CLASSES) for record in run.metrics("val"))


def test_hardness_of_every_unlabeled_image_that_was_seen(trained, recipe, scenes):
    engine, rows = recipe()["engine"], list(Run(trained).hardness())
    assert len(rows) == engine["steps"] * engine["batch_size"]
    assert [step for step, _, _ in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    pool = (scenes / "splits" / "unlabeled.txt").read_text().split()
    assert sorted(name for _, name, _ in rows) == pool  # 4 steps of 2 are one round of 8
    assert all((scenes / "images" / f"{name}.png").is_file() for _, name, _ in rows)
    assert all(0 <= hardness <= 1 for _, _, hardness in rows)


def test_a_run_is_trained_again_from_its_own_config(semiseg, here, trained, contents):
    assert semiseg(f"train {trained}/config.yaml --out again").code == 0
    again = contents(Path("again"))
    for name, digest in contents(trained).items():
        if name not in ("environment.json", "metrics.jsonl", "events.jsonl"):  # they hold command and times
            assert again[name] == digest, name


def test_settings_on_the_command_line(semiseg, here):
    done = semiseg("train recipe.yaml --set engine.steps=1 --set 'method={name: supervised}' --set data.crop=[32,16]")
    assert done.code == 0
    values = yaml.safe_load(Path("runs/recipe/config.yaml").read_text())
    assert values["engine"]["steps"] == 1
    assert values["method"]["name"] == "supervised"
    assert values["data"]["crop"] == [32, 16]
    assert Path("runs/recipe/hardness.csv").read_text() == "step,index,hardness\n"


def test_a_dry_run_says_what_the_run_would_need_and_writes_nothing(semiseg, here, contents):
    before = contents(here)
    done = semiseg("train recipe.yaml --dry-run --set engine.batch_size=4 --set engine.micro_batch_size=2")
    assert (done.code, done.err) == (0, "")
    needs = numbers(done.out)  # with the head of the table
    assert list(needs)[1:] == [
        "memory, training step",
        "memory, with an evaluation",
        "a step",
        "an evaluation",
        "the whole run",
        "room on disk",
    ]
    assert [value.split()[1] for value in list(needs.values())[1:]] == ["MB", "MB", "s", "s", "h", "MB"]
    assert "6 labeled, 8 unlabeled, 4 validation images" in done.out
    assert contents(here) == before


@pytest.mark.parametrize("name", [name for name in recipe_file.shipped() if name.startswith("methods/")])
def test_the_recipe_of_each_method_passes_a_dry_run(semiseg, scenes, pseudo, name):
    """With its own settings of the method and the optimizer; data and network are small ones."""
    network = "{architecture: unet, encoder: tu-test_efficientnet, weights: null}"
    if name.endswith("-vit"):
        options = "{patch_size: 16, dynamic_img_size: True, embed_dim: 24, num_heads: 2,"
        options += " decoder_intermediate_channels: [8, 8, 8, 8], decoder_fusion_channels: 8}"
        network = f"{{architecture: dpt, encoder: tu-vit_small_patch14_dinov2, weights: null, options: {options}}}"
    lists = ", ".join(f"{one}: splits/{one}.txt" for one in ("labeled", "unlabeled", "val"))
    data = f"{{layout: folder, root: {scenes}, crop: 64, workers: 0, pseudo: {pseudo}, {lists}}}"
    if name != "methods/st_pp":
        data = data.replace(f"pseudo: {pseudo}, ", "")
    small = ["engine.batch_size=2", "engine.precision=fp32", "engine.micro_batch_size=null", "engine.device=cpu"]
    sets = [f"--set '{one}'" for one in (f"data={data}", f"model={network}", *small)]
    done = semiseg(f"train {name} --dry-run {' '.join(sets)}")
    assert (done.code, done.err) == (0, "")
    assert "the whole run" in done.out


@pytest.mark.parametrize("name", methods.names())
def test_the_commands_on_the_page_of_a_method_pass_a_dry_run(semiseg, here, name):
    """With the data and the network of the tests; those that name a recipe of the package are tested above."""
    page = (Path(__file__).parents[2] / f"docs/methods/{name}.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    semiseg (.*)$", page, re.MULTILINE)
    shown = [command for command in commands if command.startswith('train RECIPE --set "method=')]
    for command in shown:
        done = semiseg(f"{command.replace('RECIPE', 'recipe.yaml')} --dry-run")
        assert (done.code, done.err) == (0, ""), command
    others = [command.split() for command in commands if command not in shown]
    assert shown or others
    if name != "st_pp":  # of its own commands, see the next test
        assert all(words[0] == "train" and words[1] in recipe_file.shipped() for words in others)


def test_stages_of_self_training(semiseg, here, recipe):
    values = recipe("st_pp")
    del values["data"]["pseudo"]
    Path("st.yaml").write_text(yaml.safe_dump(values))
    done = semiseg("self-train st.yaml --out staged --scales 1 --no-flip")
    assert (done.code, done.err) == (0, "")
    assert all(stage in done.out for stage in ("stage-1", "stage-2", "stage-3"))
    assert "4 pseudo-labeled, 4 unlabeled" in done.out
    images = Path(values["data"]["root"]) / "images"
    assert done.out.endswith(f"next: semiseg predict {here}/staged/stage-3 {images} --out predictions\n")
    again = semiseg("pseudo-label staged/stage-1 --out staged/pseudo-1")  # they are there
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("8 masks written to staged/pseudo-1, the most reliable first in reliability.csv\n")
    assert f"--set data.pseudo={here}/staged/pseudo-1" in again.out
    refused = semiseg("self-train recipe.yaml --out other")
    assert (refused.code, refused.err) == (
        2,
        "semiseg: method.name: imas has no stages; self-train is for st_pp\n",
    )
    alone = semiseg("train st.yaml")
    assert (alone.code, alone.err.count("\n")) == (2, 1)
    assert "data.pseudo: the method learns pseudo-labels of an earlier run" in alone.err


def test_the_recipes_of_the_paper_are_written_once(semiseg, here):
    done = semiseg("paper-recipes --out paper")
    assert (done.code, done.err) == (0, "")
    assert done.out == "79 recipes written to paper; the head of each says how to train it\n"
    assert len([*Path("paper").rglob("*.yaml")]) == 79
    refused = semiseg("paper-recipes --out paper")
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(r"semiseg: paper/table-2/\S+ and 78 more: exists already; .*--overwrite\n", refused.err)
    assert semiseg("paper-recipes --out paper --overwrite").code == 0
    done = semiseg("train paper/table-2/imas-662-r50-os16.yaml --dry-run --set data.root=nowhere")
    assert (done.code, done.out.count("\n")) == (2, 1)
    assert "data.root: there is no nowhere" in done.err


@pytest.mark.parametrize(
    "wrong",
    [
        "method.name=none",
        "data.root=nowhere",
        "data.val=nowhere.txt",
        "engine.micro_batch_size=3",
        "model.encoder=none",
        "method.ignore_class=6",
        "engine.step=1",
    ],
)
def test_a_dry_run_refuses_what_training_refuses(semiseg, here, contents, wrong):
    before = contents(here)
    said, refused = (semiseg(f"train recipe.yaml --set {wrong}{option}") for option in (" --dry-run", ""))
    assert said == refused
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert contents(here) == before


def test_odd_data_gets_a_note(semiseg, here, scenes):
    names = (scenes / "splits" / "labeled.txt").read_text().split()[:2]
    (here / "two.txt").write_text("\n".join(names))
    done = semiseg(f"train recipe.yaml --set data.labeled={here}/two.txt --set engine.steps=1")
    assert done.code == 0
    assert "note: No labeled mask shows" in done.out


# progress


@pytest.fixture
def every_line(monkeypatch) -> None:
    """A line is due after each step and each image."""
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


def counted(doing: str, total: int, unit: str = "images") -> list[str]:
    return [f"{doing}: {done} of {total} {unit}" for done in range(1, total)]


def lines(text: str, start: str) -> list[str]:
    """Lines that begin so, without the time left."""
    return [line.partition("  0:")[0] for line in text.splitlines() if line.startswith(start)]


def test_train_tells_how_far_it_is(semiseg, here, every_line):
    out = semiseg("train recipe.yaml --set engine.log_every=4").out
    assert lines(out, "checking the data") == counted("checking the data", 18)
    told = "loss N  labeled N  unlabeled N  easiness N  N img/s"
    evaluating = [f"step {{}} of 4  {line}" for line in counted("evaluating", 4)]
    expected = [f"step 1 of 4  {told}  N left", f"step 2 of 4  {told}  N left"]
    expected += [line.format(2) for line in evaluating] + [f"step 2 of 4  mIoU N (student N)  {told}  N left"]
    expected += [f"step 3 of 4  {told}  N left", f"step 4 of 4  {told}"]
    expected += [line.format(4) for line in evaluating] + [f"step 4 of 4  mIoU N (student N)  {told}"]
    shown = re.sub(r"\d+\.\d+|\d:\d\d:\d\d", "N", out)
    assert re.findall("^recipe: (.*)", shown, re.MULTILINE) == expected


def test_commands_tell_how_far_they_are(semiseg, here, trained, scenes, every_line):
    assert lines(semiseg(f"evaluate {trained}").out, "evaluating") == counted("evaluating", 4)
    assert lines(semiseg(f"predict {trained} {scenes}/images/val --out m").out, "pred") == counted("predicting", 4)
    out = semiseg("partitions recipe.yaml --out splits --size 5").out
    assert lines(out, "reading masks") == counted("reading masks", 6)
    out = semiseg("train recipe.yaml --dry-run").out
    assert lines(out, "checking the data") == counted("checking the data", 18)
    assert lines(out, "trying") == counted("trying", 3, "steps")


def test_another_process_tells_nothing(semiseg, trained, every_line, monkeypatch):
    monkeypatch.setattr(cli, "_is_first_process", lambda: False)
    assert semiseg(f"evaluate {trained}").out == ""


# going on with a run


def test_a_complete_run_takes_no_step_twice(semiseg, trained, contents, here):
    before = contents(trained)
    done = semiseg(f"train {trained}/config.yaml --out {trained}")
    assert (done.code, done.err) == (0, "")
    assert "is complete" in done.out
    assert contents(trained) == before
    assert numbers(done.out)["mIoU, last"] == percent(Run(trained).last()["miou"])  # and the table is shown again


def test_an_interrupted_run_goes_on(semiseg, here, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("semiseg.engine.train.evaluate", interrupt)
        done = semiseg("train recipe.yaml")
    assert done.code == 130
    assert done.err == "semiseg: interrupted; the same command goes on from the last checkpoint\n"
    assert "Traceback" not in done.out
    done = semiseg("train recipe.yaml")
    assert done.code == 0
    assert "going on with this run" in done.out
    assert [record["step"] for record in Run(Path("runs/recipe")).metrics("train")] == [2, 4]


def test_a_run_of_another_recipe_is_left_alone(semiseg, trained, contents, here):
    before = contents(trained)
    done = semiseg(f"train {trained}/config.yaml --out {trained} --set engine.steps=9 --set method.threshold=0.5")
    assert done.code == 2
    assert "method.threshold: 0.3 -> 0.5; engine.steps: 4 -> 9" in done.err
    assert contents(trained) == before


# evaluate


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluate_gives_the_figures_of_training(semiseg, trained, which):
    result = semiseg(f"evaluate {trained} --checkpoint {which} --device cpu")
    assert (result.code, result.err) == (0, "")
    record = getattr(Run(trained), which)()
    shown = numbers(result.out)
    assert [shown[name] for name in CLASSES] == [percent(iou) for iou in record["iou"]]
    assert shown["mIoU"] == percent(record["miou"])
    assert shown["pixel accuracy"] == percent(record["accuracy"])


def test_evaluate_elsewhere(semiseg, vivid, scenes, here):
    whole = numbers(semiseg(f"evaluate {vivid}").out)
    (here / "one.txt").write_text("val/0002\n")
    one = numbers(semiseg(f"evaluate {vivid} --set data.val={here}/one.txt").out)
    sliding = numbers(semiseg(f"evaluate {vivid} --set 'engine.evaluate={{mode: sliding, window: 16}}'").out)
    assert whole.keys() == one.keys() == sliding.keys()
    assert whole != one
    assert whole != sliding


# predict


def photos(folder: Path) -> dict[str, tuple[int, int]]:
    """Writes images of several kinds and sizes; returns their sizes by name."""
    generator = np.random.default_rng(0)
    sizes = {"a.png": (40, 33), "b/c.jpg": (17, 50), "b/d e.webp": (64, 64), "b/e/f.JPEG": (31, 32)}
    for name, (width, height) in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return sizes


def test_predict_writes_masks_and_overlays(semiseg, vivid, here):
    sizes = photos(here / "photos")
    (here / "photos" / "notes.txt").write_text("not an image")
    done = semiseg(f"predict {vivid} photos --out out --device cpu")
    assert (done.code, done.err) == (0, "")
    assert "4 masks and overlays written to out" in done.out
    stems = {str(Path(name).with_suffix("")) for name in sizes}  # folders are kept
    written = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert written == {f"{stem}{end}" for stem in stems for end in (".png", "_overlay.png")} | {"classes.png"}

    table = ClassTable.of(CLASSES, background=0)
    seen = set()
    for name, size in sizes.items():
        stem = Path("out") / Path(name).with_suffix("")
        with Image.open(f"{stem}.png") as mask, Image.open(f"{stem}_overlay.png") as overlay:
            assert (mask.mode, mask.size) == ("P", size)
            assert (overlay.mode, overlay.size) == ("RGB", size)
            index, shown = np.asarray(mask), np.asarray(overlay).astype(int)
            colors = np.asarray(mask.convert("RGB"))
        assert index.max() < len(CLASSES)
        assert np.array_equal(colors, np.array(table.colors, dtype=np.uint8)[index])
        with Image.open(Path("photos") / name) as photo:
            original = np.asarray(photo.convert("RGB")).astype(int)
        expected = np.where(index[..., None] == 0, original, 0.6 * original + 0.4 * colors)  # the background stays
        expected[:, :-1][index[:, :-1] != index[:, 1:]] = 255  # lines between classes
        expected[:-1][index[:-1] != index[1:]] = 255
        assert np.abs(shown - expected).max() <= 1
        seen |= set(np.unique(index))
    assert len(seen) > 2


def test_predict_a_single_image(semiseg, vivid, scenes, here):
    done = semiseg(f"predict {vivid} {scenes}/images/val/0001.png --out out")
    assert done.code == 0
    assert {path.name for path in Path("out").iterdir()} == {"0001.png", "0001_overlay.png", "classes.png"}


def test_predict_takes_the_best_checkpoint_unless_told(semiseg, vivid, scenes, here):
    next(vivid.glob("checkpoints/step-*/model.safetensors")).write_bytes(b"broken")
    assert semiseg(f"predict {vivid} {scenes}/images/val --out best").code == 0
    assert semiseg(f"predict {vivid} {scenes}/images/val --out last --checkpoint last").code == 2


def test_predict_never_overwrites(semiseg, trained, scenes, here, contents):
    assert semiseg(f"predict {trained} {scenes}/images/val --out out").code == 0
    before = contents(here)
    done = semiseg(f"predict {trained} {scenes}/images --out out/val/..")
    assert done.code == 0  # other names
    again = semiseg(f"predict {trained} {scenes}/images/val --out out")
    assert again.code == 0  # it is done already
    Image.new("P", (32, 32)).save(here / "out" / "0001.png")  # corrected by hand
    before |= {"out/0001.png": contents(here)["out/0001.png"]}
    again = semiseg(f"predict {trained} {scenes}/images/val --out out")
    assert again.code == 2
    assert "out/0001.png: exists already; name another folder with --out" in again.err
    assert before.items() <= contents(here).items()


# check


def test_the_check_shows_what_is_there(semiseg, here, scenes, contents):
    before = contents(scenes)
    done = semiseg("check recipe.yaml")
    assert (done.code, done.err) == (0, "")
    assert numbers(done.out) | {"labeled": "6", "unlabeled": "8", "validation": "4"} == numbers(done.out)
    assert re.search(r"│ 0 +│ +[\d.]+ % │ +10 │ 0 ground +│", done.out)  # value 0: its share, all masks, its class
    assert "no problem was found" in done.out
    assert contents(scenes) == before


def test_the_check_and_training_say_the_same(semiseg, here, scenes):
    shutil.copytree(scenes, here / "photos")
    Path("photos/images/train/IMG_1.dng").write_bytes(b"raw")
    Path("photos/masks/train/other.png").write_bytes(Path("photos/masks/train/0002.png").read_bytes())
    settings = "--set data.root=photos"
    trained = semiseg(f"train recipe.yaml {settings} --out run").out
    notes = [line for line in trained.splitlines() if "note" in line and "lost (IoU below" not in line]
    assert len(notes) == 2
    shown = semiseg(f"check recipe.yaml {settings}").out
    for note, word in zip(
        sorted(notes), (".dng files, not used: 1", "masks that belong to no image (of 11): 1"), strict=True
    ):
        assert word in note
        assert note.removeprefix("note: ").rstrip(".") in shown
    predicted = semiseg("predict run photos/images/train --out masks")
    assert "note: .dng files, not used: 1, photos/images/train/IMG_1.dng" in predicted.out


def test_the_check_is_of_data_only(semiseg, here):
    done = semiseg("check recipe.yaml --set optim.lr=1")
    assert (done.code, done.out) == (2, "")
    assert "has no effect on a check of the data" in done.err


# partitions


def test_partitions_are_nested_and_cover_the_classes(semiseg, here, scenes):
    done = semiseg("partitions recipe.yaml --out splits --size 5 --size 0.34 --size 6")
    assert (done.code, done.err) == (0, "")
    lists = {path.name: path.read_text().split() for path in Path("splits").iterdir()}
    assert set(lists) == {"val.txt", *(f"{kind}_{n}.txt" for kind in ("labeled", "unlabeled") for n in (2, 5, 6))}
    two, five, six = (set(lists[f"labeled_{n}.txt"]) for n in (2, 5, 6))
    assert (len(two), len(five), len(six)) == (2, 5, 6)
    assert two < five < six == set((scenes / "splits" / "labeled.txt").read_text().split())
    others = set((scenes / "splits" / "unlabeled.txt").read_text().split())
    assert set(lists["unlabeled_2.txt"]) == others | (six - two)
    assert set(lists["unlabeled_6.txt"]) == others
    shown = {
        int(value) for name in five for value in np.unique(np.asarray(Image.open(scenes / "masks" / f"{name}.png")))
    }
    assert shown == set(range(len(CLASSES)))
    for names in (two, five, six):
        assert partition_hash(names) in done.out
    assert "5 of 6 images, 6 of 6 classes" in done.out


def test_partitions_depend_on_the_seed_alone(semiseg, here):
    drawn = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 3)):
        assert semiseg(f"partitions recipe.yaml --out {name} --size 2 --seed {seed}").code == 0
        drawn.add(Path(name, "labeled_2.txt").read_text())
    assert Path("a/labeled_2.txt").read_text() == Path("b/labeled_2.txt").read_text()
    assert len(drawn) > 1


def test_partitions_never_overwrite(semiseg, here, contents):
    assert semiseg("partitions recipe.yaml --out splits --size 5").code == 0
    before = contents(here)
    done = semiseg("partitions recipe.yaml --out splits --size 2 --size 5 --seed 3")
    assert done.code == 2
    assert "splits/labeled_5.txt: exists already" in done.err
    assert contents(here) == before


def test_a_partition_can_be_trained_on(semiseg, here, scenes):
    assert semiseg("partitions recipe.yaml --out splits --size 5").code == 0
    done = semiseg(f"train recipe.yaml --set data.labeled={here}/splits/labeled_5.txt --set engine.steps=1")
    assert done.code == 0
    assert partition_hash(Path("splits/labeled_5.txt").read_text().split()) in done.out
