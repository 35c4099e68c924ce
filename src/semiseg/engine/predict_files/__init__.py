"""Predicts files: finds the images, predicts them with a model, and writes masks, overlays, polygons and tables."""

from semiseg.engine.predict_files.inputs import CannotReadError
from semiseg.engine.predict_files.loop import Times, predict_files
from semiseg.engine.predict_files.model import Model
from semiseg.engine.predict_files.options import KINDS, Options

__all__ = ["KINDS", "CannotReadError", "Model", "Options", "Times", "predict_files"]
