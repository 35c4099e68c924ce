"""Held-out images: classes in both parts, near-duplicates in one."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semiseg.data import twins
from semiseg.data.dataset import Sample
from semiseg.init.split import hold_out


def samples(number: int) -> list[Sample]:
    return [Sample(f"{index:02}", Path(f"{index}.jpg")) for index in range(number)]


@given(st.lists(st.frozensets(st.integers(0, 4), min_size=1), min_size=2, max_size=30))
def test_classes_of_several_images_are_in_both_parts(classes):
    every = samples(len(classes))
    sets = {sample.name: found for sample, found in zip(every, classes, strict=True)}
    val = {sample.name for sample in hold_out([(sample,) for sample in every], sets)}
    assert 1 <= len(val) < len(every)
    train = sets.keys() - val
    for index in range(5):
        holders = {name for name, found in sets.items() if index in found}
        if len(holders) > 1 and len(val) > 1:
            assert holders & train, f"class {index} is for validation only"


def test_a_rare_class_is_measured_if_it_can_be():
    every = samples(20)
    sets = {sample.name: frozenset({0}) for sample in every} | {"03": frozenset({0, 1}), "07": frozenset({0, 1})}
    val = {sample.name for sample in hold_out([(sample,) for sample in every], sets)}
    assert len(val & {"03", "07"}) == 1
    assert len(val) == 4


def test_the_choice_depends_on_names_alone():
    every, sets = samples(20), {f"{index:02}": frozenset({0}) for index in range(20)}
    one = hold_out([(sample,) for sample in every], sets)
    assert one == hold_out([(sample,) for sample in reversed(every)], sets)


def test_a_group_stays_together():
    every, sets = samples(10), {f"{index:02}": frozenset({0}) for index in range(10)}
    groups = [tuple(every[:3]), *((sample,) for sample in every[3:])]
    val = {sample.name for sample in hold_out(groups, sets, share=0.9)}
    assert val & {"00", "01", "02"} in (set(), {"00", "01", "02"})


def test_one_group_cannot_be_split():
    assert hold_out([tuple(samples(3))], {f"{index:02}": frozenset({0}) for index in range(3)}) == ()


def test_near_duplicates_are_found(tmp_path, photo, write):
    first = photo("a.png", 1)
    from PIL import Image

    with Image.open(first) as image:
        pixels = np.asarray(image)
        image.resize((80, 64)).save(tmp_path / "larger.png")
        image.save(tmp_path / "worse.jpg", quality=70)
    write("brighter.png", np.clip(pixels.astype(int) + 3, 0, 255).astype(np.uint8))
    photo("other.png", 2)
    write("negative.png", 255 - pixels)
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = ["a.png", "other.png", "larger.png", "worse.jpg", "negative.png", "brighter.png", "broken.png"]
    found = twins.groups([Sample(name, tmp_path / name) for name in names])
    assert [[sample.name for sample in group] for group in found] == [
        ["a.png", "larger.png", "worse.jpg", "brighter.png"], ["other.png"], ["negative.png"], ["broken.png"],
    ]  # fmt: skip


def test_photographs_of_one_color_are_told_apart_by_their_level(tmp_path, write):
    for level in (0, 4, 60, 250):
        write(f"{level}.png", np.full((20, 20, 3), level, np.uint8))
    found = twins.groups([Sample(str(level), tmp_path / f"{level}.png") for level in (0, 4, 60, 250)])
    assert [[sample.name for sample in group] for group in found] == [["0", "4"], ["60"], ["250"]]
