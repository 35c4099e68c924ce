import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from semiseg.augment.pools import CANDIDATES
from semiseg.errors import UserError
from semiseg.recipe.load import differences, dump, load_recipe, override, shortened, validate
from semiseg.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src/semiseg/recipes").rglob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path, recipe):
    """write(engine={...}) -> a recipe file."""

    def write(**sections) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(**sections)))
        return path

    return write


# the recipes that come with semiseg


def test_there_are_recipes():
    assert {f"src/semiseg/recipes/{name}.yaml" for name in ("folder", "voc", "official/voc")} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_survives_the_round_trip(name, tmp_path):
    """Data need not be there: a recipe is read before its files are."""
    loaded = load_recipe(ROOT / name)
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded))
    assert load_recipe(again) == loaded
    assert differences(loaded.to_dict(), load_recipe(again).to_dict()) == []
    assert validate(loaded.to_dict(), "values") == loaded


@pytest.mark.parametrize("name", RECIPES)
def test_the_head_of_a_recipe_says_how_to_use_it(name):
    lines = (ROOT / name).read_text().splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert any(
        line.split()[:4] == ["#", "semiseg", "train", name.removeprefix("src/semiseg/recipes/").removesuffix(".yaml")]
        for line in head
    )
    assert "hardware:" in " ".join(head)
    assert head[0].startswith("# ")
    assert head[0].endswith(".")
    assert len(head[0]) <= 55  # a line of `semiseg recipes`, on a terminal of 80 columns beside the longest name


# the official recipes, beside what the authors' configurations and logs say


@dataclass(frozen=True)
class Theirs:
    """Of one of their runs."""

    ours: str  # our own recipe of it
    pool: int  # unlabeled images
    gpus: int
    batch_size: int  # labeled images on each, and as many unlabeled ones
    epochs: int
    also: frozenset[str]  # keys in which the official recipe differs from ours, beside those that all differ in

    @property
    def epoch(self) -> int:
        """Its steps: the sampler deals the pool out evenly, the last batch is dropped if it is not full (D37)."""
        return math.ceil(self.pool / self.gpus) // self.batch_size


OFFICIAL = {
    "voc": Theirs("voc", 10582 - 1323, 4, 4, 80, frozenset({"data.long_side", "data.val_long_side"})),
    "cityscapes": Theirs(
        "cityscapes", 2975 - 372, 4, 4, 240,
        frozenset({"engine.eval_every", "engine.save_every", "method.labeled_loss"}),
    ),
    "cityscapes-os8": Theirs(
        "cityscapes", 2975 - 372, 8, 2, 240,
        frozenset({"engine.eval_every", "engine.save_every", "engine.steps", "method.labeled_loss",
                   "model.output_stride"}),
    ),
}  # fmt: skip
official = pytest.mark.parametrize("name", OFFICIAL)


def shipped(name: str) -> Recipe:
    return load_recipe(ROOT / f"src/semiseg/recipes/{name}.yaml")


def test_every_official_recipe_is_looked_at():
    assert sorted(f"src/semiseg/recipes/official/{name}.yaml" for name in OFFICIAL) == [
        name for name in RECIPES if "official" in name
    ]


@official
def test_an_official_recipe_differs_from_ours_where_the_authors_do_and_nowhere_else(name):
    ours, theirs = shipped(OFFICIAL[name].ours), shipped(f"official/{name}")
    changed = {line.partition(":")[0] for line in differences(ours.to_dict(), theirs.to_dict())}
    assert changed == OFFICIAL[name].also | {
        "data.padding_color",
        "engine.precision",
        "method.all_ignored",
        "method.boxes",
        "method.copy_steps",
        "method.extra_weak_forward",
        "method.ignore_class",
        "method.ignore_padding",
        "method.strong",
        "model.encoder",
        "model.options",
    }


@official
def test_an_official_recipe_has_the_epochs_of_the_authors(name):
    engine, theirs = shipped(f"official/{name}").engine, OFFICIAL[name]
    assert engine.batch_size == theirs.gpus * theirs.batch_size == 16
    assert engine.steps == theirs.epochs * theirs.epoch
    assert engine.eval_every == engine.save_every == theirs.epoch
    assert shipped(f"official/{name}").method.copy_steps == theirs.epoch


@pytest.mark.parametrize("name", [name for name in OFFICIAL if "cityscapes" in name])
def test_official_ohem_keeps_100_000_px_on_each_of_the_authors_gpus(name):
    """Ours counts the batch of all processes."""
    recipe, theirs = shipped(f"official/{name}"), OFFICIAL[name]
    assert recipe.method.labeled_loss.min_kept / recipe.engine.batch_size == 100_000 / theirs.batch_size


def test_official_validation_images_keep_their_size():
    for name in OFFICIAL:
        assert shipped(f"official/{name}").data.eval_long_side is None
    assert shipped("official/voc").data.long_side == 500


# overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("engine.steps=7", "engine", "steps", 7),
        (" engine.steps = 7 ", "engine", "steps", 7),
        ("optim.lr=1e-3", "optim", "lr", 0.001),
        ("data.crop=[16,24]", "data", "crop", [16, 24]),
        ("data.scale=[1, 1.5]", "data", "scale", [1.0, 1.5]),
        ("data.long_side=null", "data", "long_side", None),
        ("data.val_long_side=null", "data", "val_long_side", None),
        ("data.val_long_side=same", "data", "val_long_side", "same"),
        ("data.root=a=b", "data", "root", "a=b"),
        ("data.root=~/photos", "data", "root", str(Path("~/photos").expanduser())),
        ("data.values={255: 1}", "data", "values", {"255": 1}),  # keys of JSON are texts
        ("method.ignore_padding=false", "method", "ignore_padding", False),
        ("method.ignore_class=none", "method", "ignore_class", "none"),
        ("method.ignore_class=2", "method", "ignore_class", 2),
        ("method.labeled_loss.kind=ohem", "method", "labeled_loss",
         {"kind": "ohem", "class_weights": None, "ohem_threshold": None, "min_kept": None}),
        ("engine.evaluate={mode: sliding, window: 32}", "engine", "evaluate",
         {"mode": "sliding", "window": 32, "stride": None}),
    ],
)  # fmt: skip
def test_values_of_overrides_are_yaml(write, override, section, key, value):
    loaded = load_recipe(write(), [override]).to_dict()
    assert loaded[section][key] == value
    assert [line.split(":")[0] for line in differences(load_recipe(write()).to_dict(), loaded)] in (
        [f"{section}.{key}"],
        [],  # what it was before
    )


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        ("a.json", "a.json"),
        ("2024-05-01", "2024-05-01"),
        ("[a.json, b.json]", ["a.json", "b.json"]),
        ("[a.json]", ["a.json"]),
        ("'[a].json'", "[a].json"),
    ],
)
def test_one_file_or_several(write, written, paths):
    data = {"layout": "coco", "annotations": "c.json", "val": None}
    loaded = load_recipe(write(data=data), [f"data.annotations={written}"])
    assert loaded.to_dict()["data"]["annotations"] == paths
    path = write(data=data)
    path.write_text(path.read_text().replace("annotations: c.json", f"annotations: {written}"))
    assert load_recipe(path).data == loaded.data


def test_later_overrides_win(write):
    assert load_recipe(write(), ["engine.steps=7", "engine.steps=8"]).engine.steps == 8


def test_a_section_is_replaced_as_a_whole(write):
    loaded = load_recipe(write(), ["method={name: supervised}"])
    assert loaded.method_name == "supervised"
    with pytest.raises(UserError, match=r"method.threshold: unknown key; known are labeled, labeled_loss, ema_decay"):
        load_recipe(write(), ["method.name=supervised"])  # keys of the other method are no silent leftovers


def test_override_of_a_recipe_in_memory(write):
    loaded = load_recipe(write())
    assert override(loaded, ["engine.steps=7"]) == load_recipe(write(), ["engine.steps=7"])
    assert override(loaded, []) == loaded
    with pytest.raises(UserError, match=r"^recipe: engine.stepz: unknown key; did you mean steps\?$"):
        override(loaded, ["engine.stepz=7"])


# messages


def refused(values: dict, **changes) -> str:
    with pytest.raises(UserError) as caught:
        validate(values | changes, "here.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"engine": {"stepz": 1}}, "engine.stepz: unknown key; did you mean steps?"),
        ({"engine": {"evaluate": {"windw": 1}}}, "engine.evaluate.windw: unknown key; did you mean window?"),
        ({"method": {"strong": {"hueue": 1}}}, "method.strong.hueue: unknown key; did you mean hue?"),
        ({"method": {"strong": {"pool": "jitter", "sigmma": 1}}},
         "method.strong.sigmma: unknown key; did you mean sigma?"),
        ({"method": {"strong": {"pool": "jitter", "num_ops": 1}}},
         "method.strong.num_ops: unknown key; known are pool, jitter_probability, brightness, contrast, saturation, "
         "hue, grayscale_probability, blur_probability, sigma"),
        ({"method": {"labeled": {"brightnes": 1, "pool": "jitter"}}},
         "method.labeled.brightnes: unknown key; did you mean brightness?"),
        ({"method": {"labeled": {"ops": ["blur", "hue"]}}},
         "method.labeled.ops: there is no operation 'blur'; known are identity, invert, autocontrast, equalize, "
         "gaussian_blur, contrast, sharpness, color, brightness, hue, posterize, solarize (got ['blur', 'hue'])"),
        ({"method": {"strong": {"pool": "jiter"}}},
         "method.strong: should be mild, jitter, intensity, or a section with one of them as pool"),
        ({"method": {"labeled": 3}},
         "method.labeled: should be mild, jitter, intensity, or a section with one of them as pool (got 3)"),
        ({"engine": {"steps": 0}}, "engine.steps: should be greater than or equal to 1 (got 0)"),
        ({"engine": {"steps": 0, "seed": -1}}, "engine.steps: should be greater than or equal to 1 (got 0); 1 more"),
        ({"data": {"scale": [2, 1]}}, "data.scale: the smaller scale comes first, e.g. (1.0, 2.0) (got [2, 1])"),
        ({"data": {"scale": [0, 1]}}, "data.scale.0: should be greater than 0 (got 0)"),
        ({"model": {"mean": [1, 2]}}, "model.mean: should have more values (got [1, 2])"),
        ({"data": {"val_long_side": "x"}}, "data.val_long_side: should be a valid integer, unable to parse string as "
         "an integer, or should be 'same' (got 'x')"),
        ({"data": {"padding_color": [1, 2]}}, "data.padding_color: should have more values (got [1, 2])"),
        ({"data": {"padding_color": [1, 2, 256]}},
         "data.padding_color.2: should be less than or equal to 255 (got 256)"),
        ({"data": {"crop": "x"}}, "data.crop: should be a valid integer, unable to parse string as an integer, "
         "or should be a valid tuple (got 'x')"),
        ({"data": {"crop": [10**9, 32]}}, "data.crop.0: should be less than or equal to 16384 (got 1000000000)"),
        ({"data": {"crop": "x" * 999}}, "data.crop: should be a valid integer, unable to parse string as an integer, "
         f"or should be a valid tuple (got '{'x' * 47}...{'x' * 48}')"),
        ({"optim": {"lr": [[[[1] * 99]], *range(99)]}}, "optim.lr: should be a valid number "
         "(got [[[[...]]], 0, 1, 2, 3, 4, ...])"),
        ({"method": {"loss": "hard"}}, "method.loss: should be 'adaptive' or 'standard' (got 'hard')"),
        ({"model": {"output_stride": 8}}, "model: output_stride: unet has none; remove it or use deeplabv3plus"),
    ],
)  # fmt: skip
def test_one_line_that_names_the_key(recipe, sections, message):
    assert refused(recipe(**sections)) == f"here.yaml: {message}"


@pytest.mark.parametrize("settings", [
    {"strong": {"pool": "jitter"}},
    {"strong": {"pool": "jitter", "hue": 0.1, "sigma": [0.5, 1]}, "labeled": {"pool": "jitter"}},
    {"labeled": {"pool": "intensity", "ops": ["brightness", "hue"]}},
    {"labeled": {"ops": ["solarize"], "num_ops": 1, "solarize": [100, 200]}},
])  # fmt: skip
def test_pools_survive_the_round_trip(write, tmp_path, settings):
    loaded = load_recipe(write(method=settings))
    again = tmp_path / "config.yaml"
    again.write_text(dump(loaded))
    assert load_recipe(again) == loaded
    for key, wanted in settings.items():
        pool = getattr(loaded.method, key)
        assert pool.pool == wanted.get("pool", "intensity")
        assert {name: pool.model_dump(mode="json")[name] for name in wanted} == wanted


def test_a_pool_has_a_name(write):
    loaded = load_recipe(write(method={"strong": "mild"}), ["method.labeled=jitter"])
    assert (loaded.method.strong, loaded.method.labeled) == (CANDIDATES["mild"], CANDIDATES["jitter"])
    assert not {"invert", "solarize", "equalize"} & {*loaded.method.strong.names}
    with pytest.raises(UserError, match=r"method\.strong: should be mild, jitter, intensity, or a section"):
        override(loaded, ["method.strong=none"])  # consistency needs some change


def test_what_is_missing_is_named(recipe):
    values = recipe()
    del values["engine"]["steps"], values["data"]["root"]
    assert refused(values) == "here.yaml: data.root: is missing"
    assert (
        refused(values, data={})
        == "here.yaml: data.layout: is missing; choose one of cityscapes, coco, folder, labelme, voc"
    )
    values["data"]["root"] = "photos"
    assert refused(values) == "here.yaml: engine.steps: is missing"
    assert refused(recipe(), engine=None) == "here.yaml: engine.steps: is missing"


def test_sections(recipe):
    assert refused(recipe(), optimizer={}) == "here.yaml: optimizer: unknown section; did you mean optim?"
    assert refused(recipe(), zzz={}).startswith("here.yaml: zzz: unknown section; known are data, model, method")
    assert refused(recipe(), optim=[1]) == "here.yaml: optim: is a section with keys, not [1]"
    optional = recipe()
    del optional["optim"], optional["model"]
    assert validate(optional, "here.yaml").model.architecture == "deeplabv3plus"


def reader(text: str, path: Path) -> str:
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: *a", "is not YAML in line 1: recipes have no aliases (*); write the value out"),
        ("data: &a {x: 1}\nmodel: {<<: *a}", "is not YAML in line 2: recipes have no aliases (*); write the value out"),
        ("data: {a: 1}\ndata: {}", "is not YAML in line 2: the key 'data' occurs twice; remove one"),
        ("data: {[1]: 1, [1]: 2}", "is not YAML in line 1: found unhashable key"),
        (f"data: {{crop: {'9' * 101}}}", "is not YAML in line 1: a number of more than 100 digits"),
        (f"data: {{crop: 1{':59' * 99}.5}}", "is not YAML in line 1: a number of more than 100 digits"),
        ("data: 2001-99-99", "is not YAML: month must be in 1..12"),
        ("data: \x1b", "is not YAML: special characters are not allowed"),
        ("- " * 2000, "is nested too deeply; a recipe has sections, keys and values"),
        ("#" * 100_001, "cannot be read as a recipe (more than 100000 bytes); name a text file of a usual size"),
        ("- 1", "a recipe has the sections data, model, method, optim, engine"),
    ],
)
def test_yaml_that_no_recipe_needs(tmp_path, text, message):
    assert reader(text, tmp_path / "recipe.yaml") == f"{tmp_path}/recipe.yaml: {message}"


def test_keys_alike_in_different_places_are_no_repetition(write, tmp_path):
    text = write().read_text() + "# a comment as long as one likes\n" * 99
    (tmp_path / "again.yaml").write_text("\ufeff" + text.replace("\n", "\r\n"))  # as Windows writes it
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(write())
    assert load_recipe(write(), ["model.mean=[0.5,0.5,0.5]"]).model.mean == (0.5, 0.5, 0.5)


# differences


def test_differences(recipe):
    old = validate(recipe(), "old").to_dict()
    new = validate(recipe(engine={"seed": 3}, data={"crop": [16, 16]}), "new").to_dict()
    assert differences(old, old) == []
    assert differences(old, new) == ["data.crop: 32 -> [16, 16]", "engine.seed: 0 -> 3"]
    other = validate(recipe("supervised"), "other").to_dict()
    changed = differences(old, other)
    assert "method.name: imas -> supervised" in changed
    assert "method.threshold: 0.3 -> None" in changed
    assert len(changed) > 6
    assert shortened(changed) == f"{'; '.join(changed[:5])}; and {len(changed) - 5} more"
    assert shortened(changed[:5]) == "; ".join(changed[:5])
    assert "method.ema_decay: 0.5 -> None" in changed


# text stays text


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-01",
        "123",
        "1_000",
        "0x10",
        "no",
        "on",
        "1e3",
        "12:30",
        "a: b",
        "a #1",
        "@eaDir",
        "*x",
        "[x",
        "100%",
        "-",
        "~/x y",
    ],
)
def test_a_path_is_text(write, text, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = Path(text).expanduser()
    settings = [f"data.{key}={text}" for key in ("root", "labeled", "val", "images", "classes")]
    loaded = load_recipe(write(), settings)
    assert {getattr(loaded.data, key) for key in ("root", "labeled", "val", "images", "classes")} == {expected}
    weights = override(loaded, [f"model.weights={text}"]).model.weights
    assert weights == str(expected)
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded))
    assert load_recipe(again) == loaded


@pytest.mark.parametrize("text", ["2024-05-01", "123", "1_000", "no", "12:30"])
def test_a_path_in_a_file_is_text(write, text):
    path = write()
    lines = [f"  root: {text}" if line.startswith("  root:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert load_recipe(path).data.root == Path(text)
    assert load_recipe(path, ["engine.steps=3"]).data.root == Path(text)
    assert load_recipe(path, ["data.root=other"]).data.root == Path("other")
    assert load_recipe(path, ["data={layout: folder, root: else}"]).data.root == Path("else")
    assert load_recipe(path, [f"data={{layout: folder, root: {text}}}"]).data.root == Path(text)


@pytest.mark.parametrize(
    ("text", "background"), [("no", "no"), ("2", 2), ("null", None), ("'2'", "2"), ("2024-05-01", "2024-05-01")]
)
def test_a_class_is_named_by_text_or_number(write, text, background):
    assert load_recipe(write(), [f"data.background={text}"]).data.background == background


def test_what_is_no_text_stays_what_it_is(write):
    loaded = load_recipe(write(), ["data.labeled=null", "data.val=", "model.weights=~", "data.root='a #1'"])
    assert (loaded.data.labeled, loaded.data.val, loaded.model.weights) == (None, None, None)
    assert loaded.data.root == Path("a #1")
    for setting, says in {
        "data.root=": "data.root",
        "data.crop=2024-05-01": "data.crop",
        "engine.steps=[x": "--set engine.steps=",
        "data.values={1: [": "--set data.values=",
        "data=[x": "--set data=",
    }.items():
        with pytest.raises(UserError, match=says):
            load_recipe(write(), [setting])


@pytest.mark.parametrize("key", ["root", "labeled", "unlabeled", "val", "images", "masks", "classes"])
def test_a_home_directory_is_meant(write, monkeypatch, tmp_path, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(load_recipe(write(), [f"data.{key}=~/x"]).data, key) == tmp_path / "x"
    assert getattr(load_recipe(write(data={key: "~/x"})).data, key) == tmp_path / "x"


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [("cct", "unlabeled_ramp", "ramp"), ("gct", "consistency_ramp", "ramp"), ("imas", "confidence", "threshold")],
)
def test_a_setting_that_was_renamed(recipe, tmp_path, method, old, new):
    """The recipe of a run that earlier code began."""
    path, values = tmp_path / "config.yaml", recipe(method)
    values["method"].pop(new, None)
    values["method"][old] = 0.25
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=f"^{path}: method.{old}: is called {new} now; rename it there, its value"):
        load_recipe(path)
    path.write_text(path.read_text().replace(old, new))
    assert getattr(load_recipe(path).method, new) == 0.25


def test_a_renamed_setting_is_unknown_where_it_never_was(recipe):
    values = recipe("supervised")
    values["method"]["unlabeled_ramp"] = 0.25
    with pytest.raises(UserError, match=r"method\.unlabeled_ramp: unknown key"):
        validate(values, "recipe")
