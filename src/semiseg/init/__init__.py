"""Looks at a folder of photographs and masks and writes a folder from which `semiseg train` starts.

It finds the masks (`masks`), joins files of one class each (`layers`), says what the masks mean (`values`), holds out
validation images (`split`), chooses settings with reasons (`settings`), and writes a recipe (`recipe`). Later it takes
corrected labels into the folder (`update`).
"""

from semiseg.init.request import Ask, Request
from semiseg.init.run import init
from semiseg.init.update import Update, update

__all__ = ["Ask", "Request", "Update", "init", "update"]
