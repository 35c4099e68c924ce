"""Writes the model card of an exported network: Markdown with the fields of a card in YAML at its head."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from semiseg.percent import miou_percent, percent

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:@-])")  # what Markdown or HTML could give a meaning


def text(about: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Writes a model card.

    Names of classes and runs come from users. They are escaped, so that they can be nothing but text.

    Args:
        about: the values of semiseg.json.
        sizes: the files of the export with their sizes in bytes.
    """
    blocks = [
        _head(about),
        f"# {plain(about['run']['name'])}",
        _what(about),
        _classes(about),
        _data(about),
        _metrics(about),
        _files(about, sizes),
        _use(about),
        "## License\n\nNot stated. Fill it in here and in the field `license` at the head of this file; the license of "
        "the images that the network was trained on may limit it.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def measured(about: Mapping[str, Any]) -> list[str]:
    """Returns a line for each ONNX file: its difference to PyTorch, and its mIoU where it was measured."""
    lines = []
    for name, one in about["onnx"].items():
        line = f"{name}: differs from PyTorch by at most {one['largest_difference']:.1g} in probability"
        line += f" ({one['compared_on']})"
        line += f"; mIoU {percent(one['miou'])} on {one['miou_images']} validation images" if "miou" in one else ""
        lines.append(line)
    return lines


def plain(value: object) -> str:
    r"""Escapes a text for Markdown: it shows as it is, on one line.

    Example:
        >>> print(plain("a|b\n<b>"))
        a\|b \<b\>
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return _SPECIAL.sub(r"\\\1", line)


def _head(about: Mapping[str, Any]) -> str:
    tags = ["semantic-segmentation", "semi-supervised-learning", "segmentation-models-pytorch", "semiseg"]
    tags += ["onnx"] if about["onnx"] else []
    fields = {"library_name": "segmentation-models-pytorch", "pipeline_tag": "image-segmentation", "tags": tags}
    license = "license:  # fill in, e.g. cc-by-4.0, or other with the two lines below\n"
    license += "# license_name:\n# license_link:\n"
    return f"---\n{license}{yaml.safe_dump(fields, sort_keys=False)}---"


def _what(about: Mapping[str, Any]) -> str:
    run, model, number = about["run"], about["model"], len(about["networks"])
    several = "" if number == 1 else f"{number} networks whose mean probability counts, each a "
    weights = {None: "random initial weights", "a file": "initial weights from a file"}.get(
        run["encoder_weights"], f"initial weights {plain(run['encoder_weights'])}"
    )
    return (
        f"A network for semantic segmentation: {several}{plain(model['architecture'])} with encoder "
        f"{plain(model['encoder'])} ({weights}), {run['parameters'] / 1e6:.2f} million parameters. Trained by semiseg "
        f"with the method {plain(run['method'])} for {about['step']} of {run['steps']} steps of {run['batch_size']} "
        f"labeled images, seed {run['seed']}; this is the {plain(run['checkpoint'])} checkpoint."
    )


def _classes(about: Mapping[str, Any]) -> str:
    classes = about["classes"]
    rows = [
        f"| {index} | {plain(name)}{' (background)' if index == classes['background'] else ''} | "
        f"\\#{red:02x}{green:02x}{blue:02x} |"
        for index, (name, (red, green, blue)) in enumerate(zip(classes["names"], classes["colors"], strict=True))
    ]
    return "\n".join(["## Classes", "", "| index | class | color |", "| --- | --- | --- |", *rows])


def _data(about: Mapping[str, Any]) -> str:
    labels = about["run"]["labels"]
    names = {"labeled": "labeled", "pseudo_labeled": "pseudo-labeled", "unlabeled": "unlabeled", "val": "validation"}
    rows = [f"| {shown} images | {plain(labels[key])} |" for key, shown in names.items() if key in labels]
    rows += [f"| partition of the labels | {plain(labels['partition'])} |"] if labels.get("partition") else []
    rows += [f"| published as | {plain(labels['published'])} |"] if labels.get("published") else []
    told = "Fill in: where the images are from, who labeled them, what they do not show."
    return "\n".join(["## Data", "", "| | |", "| --- | --- |", *rows, "", told])


def _metrics(about: Mapping[str, Any]) -> str:
    records = {key: about["run"][key] for key in ("last", "best") if about["run"][key]}
    if not records:
        return "## Metrics\n\nThe run was not evaluated."
    names = " | ".join(f"{key} (step {record['step']})" for key, record in records.items())
    rows = [("mIoU", [miou_percent(one["miou"], one["iou"]) for one in records.values()])]
    rows += [("pixel accuracy", [percent(one["accuracy"]) for one in records.values()])]
    rows += [
        (plain(name), [percent(one["iou"][index]) for one in records.values()])
        for index, name in enumerate(about["classes"]["names"])
    ]
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    head = [f"| IoU in % | {names} |", "| --- |" + " ---: |" * len(records)]
    return "\n".join(["## Metrics", "", "On the validation images, by PyTorch.", "", *head, *lines])


def _files(about: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    onnx = about["onnx"]
    measured = any("miou" in one for one in onnx.values())
    columns = ["file", "size", "largest difference to PyTorch, in probability", *(["mIoU, %"] if measured else [])]
    rows = []
    for name, size in sizes.items():
        if name.endswith((".onnx", ".safetensors")):
            of = onnx.get(name, {})
            cells = [name, f"{size / 1e6:.1f} MB"]
            cells += [f"{of['largest_difference']:.1g}" if of else ""]
            cells += [percent(of.get("miou")) if of else ""] * measured
            rows.append(f"| {' | '.join(cells)} |")
    table = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *rows]
    notes = [f"Compared on {plain(one['compared_on'])}." for one in [*onnx.values()][:1]]
    counts = [one["miou_images"] for one in onnx.values() if "miou" in one]
    notes += [f"The mIoU was measured with onnxruntime on {counts[0]} validation images."] if counts else []
    return "\n".join(["## Files", "", *table, *(["", " ".join(notes)] if notes else [])])


def _use(about: Mapping[str, Any]) -> str:
    used = about["input"]
    resized = []
    if used["long_side"]:
        size = f"[round(side * {used['long_side']} / max(image.size)) for side in image.size]"
        resized = [f"image = image.resize({size}, Image.Resampling.BILINEAR)"]
    opened = ['image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")', *resized]
    parts = ["## How to use", ""]
    parts += ["With semiseg: `semiseg predict FOLDER photos --out masks`, or from Python:", ""]
    parts += _code("import semiseg", "", 'semiseg.predict("FOLDER", "photos", out="masks")')
    if used["evaluate"]["mode"] == "sliding":
        window = used["evaluate"]["window"]
        parts += [
            "",
            f"The scores above were measured in windows of {window} px, as semiseg predicts. The code below does not.",
        ]
    if about["onnx"]:
        parts += ["", "With onnxruntime (sides of any length; normalization and padding are inside):", ""]
        parts += _code(
            "import numpy as np",
            "import onnxruntime",
            "from PIL import Image, ImageOps",
            "",
            *opened,
            "pixels = np.asarray(image).transpose(2, 0, 1)[None]  # uint8, 1 x 3 x height x width",
            'session = onnxruntime.InferenceSession("FOLDER/model.onnx")',
            '(probability,) = session.run(["probability"], {"image": np.ascontiguousarray(pixels)})',
            "label = probability[0].argmax(0)  # height x width, index of the class",
        )
    stride, mean, std = used["stride"], used["mean"], used["std"]
    networks = "network" if about["networks"] == ["."] else "each network"
    folder = "FOLDER" if about["networks"] == ["."] else f"FOLDER/{about['networks'][0]}"
    parts += ["", f"With segmentation_models_pytorch ({networks} computes logits from normalized images):", ""]
    parts += _code(
        "import numpy as np",
        "import segmentation_models_pytorch as smp",
        "import torch",
        "from PIL import Image, ImageOps",
        "",
        *opened,
        "pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255",
        f"pixels = (pixels - torch.tensor({mean})[:, None, None]) / torch.tensor({std})[:, None, None]",
        "height, width = pixels.shape[-2:]",
        f"pixels = torch.nn.functional.pad(pixels, (0, -width % {stride}, 0, -height % {stride}))",
        f'network = smp.from_pretrained("{folder}").eval()',
        "with torch.no_grad():",
        "    label = network(pixels)[0, :, :height, :width].argmax(0)",
    )
    return "\n".join(parts)


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]
