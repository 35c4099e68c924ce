"""Tells predictions that somebody has corrected from those that are as they were written."""

from pathlib import Path

from semiseg import files
from semiseg.engine.predict_files import geo, summaries
from semiseg.engine.predict_files.outputs import read_json


def is_unchanged(path: Path) -> bool:
    """Returns whether a mask, an overlay, a LabelMe file or a summary is as a prediction wrote it.

    A program that saves a file anew changes it, even if a person sees no difference: most leave the mark out.
    """
    if path.name in summaries.NAMES.values() and summaries.is_unchanged(path):
        return True
    if path.suffix == ".json":
        return read_json(path) is not None
    return geo.is_unchanged(path) if path.suffix == ".tif" else files.is_unchanged(path)
