"""Says errors in the words of `semiseg init`: its options and the user's files in place of settings of a recipe."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semiseg.errors import UserError
from semiseg.init.request import Request

_CLASS_FILE = "a class file (name #RRGGBB) and give it with --classes"
_REMEDIES = (  # what an error says -> what it says in init, which has no such setting
    (r"set data\.images( to the folder of these images)?$", "name the folder of these images with --images"),
    (r"^data\.images: (.+) holds no image", r"--images \1: holds no image"),
    (r"Then set data\.layout=coco data\.annotations=FILE", "Then give it with --coco FILE in place of --labelme"),
    (r"^data\.annotations: (.+) holds no JSON file; .*", r"--labelme \1: holds no JSON file; name the folder of "
     r"LabelMe's files"),
    (r"^data\.background: (?:--classes|(.+)) has no class 'background' for pixels in no object; .*",
     r"--classes \1: has no class 'background', which pixels in no object are; add it"),
    (r", or set data\.empty=labeled if .*", ""),
    (r"name those that count in a class file \(data\.classes\)", "name those that count with --classes"),
    (r"write the colors into the class file \(name #RRGGBB\), or name them with data\.colors.*",
     f"write the colors into {_CLASS_FILE}"),
    (r"name all colors of the masks with data\.colors", f"write all colors of the masks into {_CLASS_FILE}"),
    (r"say which class each color is with data\.colors, or save", "save"),
    (r"^data\.values: (.*\(ignored\)); .*data\.values.*",
     r"--masks: \1; correct these masks, or name the classes of all values with --classes"),
    (r"set data\.values='\{(\d+): (\d+)\}'.*", r"store it as \2, or name as many classes as the masks show with "
     r"--classes"),
    (r"set data\.mask_orientation=stored, or ", ""),
    (r"set data\.mask_orientation=upright.*", "export all masks in one way, on the photographs as they are shown"),
    (r"leaves data\.root;", "leaves the folder of the photographs;"),
    (r"^data\.labeled: no image with a mask is left for it;", "--masks: no image with a mask is left for training;"),
)  # fmt: skip


@contextmanager
def own_words(request: Request, work: Path) -> Iterator[None]:
    """Says errors of the code within in the words of init.

    Args:
        request: what the user has asked for.
        work: the folder that is written, which the user does not know and which an error removes.

    Raises:
        UserError: the code within raised one.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(said(str(error), request, work)) from error


def said(message: str, request: Request, work: Path) -> str:
    """Returns the message with options of init and the user's files."""
    is_file = request.classes is not None and Path(request.classes).is_file()
    message = message.replace(str(work / "classes.txt"), str(request.classes) if is_file else "--classes")
    joined = rf"{re.escape(str(work / 'masks'))}/(.+?)\.png"
    message = re.sub(joined, lambda found: f"--masks {request.masks}: the masks of {found[1]}", message)
    message = message.replace(str(work), str(request.out))
    for pattern, words in _REMEDIES:
        message = re.sub(pattern, words, message)
    source = "--coco" if request.coco else "--labelme" if request.labelme else "--masks"
    options = {"annotations": source, "labeled": source} | {
        key: f"--{key}" for key in ("images", "masks", "classes", "val")
    }
    named = rf"\bdata\.({'|'.join(options)})\b(?!=)"
    message = re.sub(named, lambda found: options[found[1]], message).replace("--classes :", "--classes:")
    return re.sub(r"^data\.values: ", "--masks: ", message)
