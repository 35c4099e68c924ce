"""Predicts files: finds the images, predicts them with a model, and writes masks, overlays, polygons and tables."""

from semiseg.engine.predict_files.inputs import CannotReadError, Item, find
from semiseg.engine.predict_files.loop import Times, predict_files, predict_items
from semiseg.engine.predict_files.model import Model
from semiseg.engine.predict_files.options import KINDS, Options
from semiseg.engine.predict_files.outputs import overlay_path
from semiseg.engine.predict_files.summaries import COCO
from semiseg.engine.predict_files.unchanged import is_unchanged

__all__ = [
    "COCO",
    "KINDS",
    "CannotReadError",
    "Item",
    "Model",
    "Options",
    "Times",
    "find",
    "is_unchanged",
    "overlay_path",
    "predict_files",
    "predict_items",
]
