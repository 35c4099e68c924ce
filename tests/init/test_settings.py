"""Settings that suit data and machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from semiseg.data.order import ClassBalanced
from semiseg.init import recipe
from semiseg.init.settings import Facts, Setting, choose, kind_and_why, kind_of, rare_classes, steps
from semiseg.recipe import file as recipe_file

FACTS = Facts(
    sizes=[(360, 480)] * 3, labeled=20, unlabeled=100, classes=("background", "disc"), background=0,
    images_of_class={0: 20, 1: 10}, areas={0: [0.9], 1: [0.1]}, gray=False, on_gpu=False, cores=2,
)  # fmt: skip


def chosen(**changes) -> dict[str, object]:
    return {f"{one.section}.{one.key}": one.value for one in choose(replace(FACTS, **changes))}


def test_a_gpu_gets_larger_images_and_a_larger_network():
    cpu, gpu = chosen(), chosen(on_gpu=True, cores=16)
    assert (cpu["data.long_side"], cpu["data.crop"]) == (240, 160)
    assert (gpu["data.long_side"], gpu["data.crop"]) == (480, 320)
    assert (cpu["model.encoder"], gpu["model.encoder"]) == ("tu-tf_efficientnet_lite0", "tu-tf_efficientnet_lite2")
    assert "model.options" not in gpu
    assert (cpu["data.workers"], gpu["data.workers"]) == (0, 8)


def test_small_objects_get_larger_images():
    assert chosen(areas={0: [0.9], 1: [0.0005]})["data.long_side"] == 358  # 8 px / sqrt(0.0005)
    assert chosen(areas={0: [0.9], 1: [1e-7]})["data.long_side"] == 480  # never above the photographs
    assert chosen(sizes=[(100, 120)])["data.long_side"] == 120


@pytest.mark.parametrize("size", [(40, 1000), (1000, 40), (33, 34), (8, 8), (5000, 5000)])
def test_a_crop_fits_into_the_image_at_its_largest_scale(size):
    found = chosen(sizes=[size])
    assert found["data.crop"] == 32 or found["data.crop"] <= 2 * min(size) * found["data.long_side"] / max(size)


def test_rare_classes_are_shown_more_often():
    assert "data.labeled_order" not in chosen()
    assert chosen(images_of_class={0: 20, 1: 2})["data.labeled_order"] == "class_balanced"
    assert "data.labeled_order" not in chosen(images_of_class={0: 4, 1: 2}, labeled=4)  # everything is rare


def test_frequent_classes_are_still_shown():
    """One image of a class on a thousandth of the pixels; another class fills a tenth of them."""
    temperature = chosen(images_of_class={0: 20, 1: 10, 2: 1}, classes=("background", "frequent", "rare"))[
        "data.temperature"
    ]
    counts = [{0: 1800, 1: 200}] * 10 + [{0: 1980, 2: 20}]
    order = ClassBalanced.of(counts, float(str(temperature)), seed=0)
    shown = sum(order.index(turn) < 10 for turn in range(200))
    assert 40 < shown < 120


MANY = tuple(f"c{number}" for number in range(9))
KINDS = {
    "shifted": {},
    "defects": {"gray": True},
    "objects": {"classes": MANY},
    "street": {"classes": MANY, "background": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_method_is_the_recommended_one_for_the_kind_of_data(kind):
    assert kind_of(replace(FACTS, **KINDS[kind])) == kind
    recommended = recipe_file.read(Path("recommended") / kind)["method"]
    found = chosen(**KINDS[kind])
    assert {f"method.{key}": value for key, value in recommended.items()} == {
        key: value for key, value in found.items() if key.startswith("method.")
    }
    assert found["method.labeled"] == ("jitter" if kind == "shifted" else None)


def test_gray_photographs_without_a_background_are_no_defects():
    assert kind_of(replace(FACTS, classes=MANY, gray=True)) == "defects"
    assert kind_of(replace(FACTS, classes=MANY, background=None, gray=True)) == "street"


def test_every_recommended_recipe_is_for_a_kind_of_data():
    names = {name.removeprefix("recommended/") for name in recipe_file.shipped() if name.startswith("recommended/")}
    assert names == set(KINDS)


def test_without_unlabeled_images_training_is_supervised():
    assert chosen(unlabeled=0)["method.name"] == "supervised"
    found = {key: value for key, value in chosen(unlabeled=0, gray=True).items() if key.startswith("method.")}
    weights = {"class_weights": "inverse_sqrt"}  # labels matter as much
    assert found == {"method.name": "supervised", "method.labeled": None, "method.labeled_loss": weights}


def test_the_kind_is_said_with_its_reason():
    others = "others: recommended/objects, recommended/street, recommended/defects"
    few = "2 classes (4 or fewer are few) in color, a background"
    assert kind_and_why(FACTS) == f"{few} -> method of recommended/shifted; {others}"
    supervised = kind_and_why(replace(FACTS, unlabeled=0))
    assert supervised == f"{few} -> labeled images as in recommended/shifted; {others}"
    street = replace(FACTS, classes=tuple("abcdef"), background=None)
    assert kind_and_why(street).startswith("6 classes in color, no background -> method of recommended/street; others")


def test_classes_of_few_images_are_said():
    assert rare_classes(FACTS) is None
    facts = replace(FACTS, labeled=3, images_of_class={0: 3, 1: 2})
    assert rare_classes(facts) == "fewer than 3 labeled images show: disc"
    assert rare_classes(replace(facts, labeled=2)) is None  # then none can show in more


def test_steps_fit_the_time_and_the_labels():
    assert steps(1.0, step_s=1.0, evaluation_s=30.0, labeled=20, evaluations=8) == 3000
    assert steps(100.0, step_s=0.1, evaluation_s=1.0, labeled=20, evaluations=8) == 8000  # 400 a label
    assert steps(0.1, step_s=10.0, evaluation_s=1.0, labeled=20, evaluations=8) == 496  # fewer teach nothing


def test_every_choice_has_its_reason_in_the_recipe():
    settings = [*choose(FACTS), Setting("engine", "steps", 8, "x" * 130)]
    text = recipe.text(["A head."], settings)
    assert text.startswith("# Made by semiseg init.\n# A head.\n")
    assert max(map(len, text.splitlines())) <= 134
    values = yaml.safe_load(text)
    assert values == {
        section: {one.key: one.value for one in settings if one.section == section}
        for section in {one.section for one in settings}
    }
    assert all(one.why and one.why in text for one in settings)
    for section, key in (("data", "images"), ("data", "masks"), ("data", "annotations"), ("engine", "save_every")):
        assert f"  {key}: 1  # " in recipe.text([], [Setting(section, key, 1, "")])
