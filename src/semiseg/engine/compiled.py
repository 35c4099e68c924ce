"""Networks compiled with torch.compile (`engine.compile`).

Only calls of a network are compiled, in place: its class, names and state dict stay what they are, so checkpoints, EMA
and the wrappers of several processes see no difference. Training calls networks with a few shapes, each of which gets a
graph of its own. Evaluation has images of any size and goes around the graphs (`semiseg.models.predict.whole`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import ShortenTraceback

from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.models.build import Network

# Dropout draws what it draws in a run that is not compiled: the compiler's own random numbers are others.
_HOW: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}


def compile_networks(method: SemiMethod) -> None:
    """Has the method's networks compiled at their first calls.

    What was compiled in this process before, by an earlier run or by others, is forgotten: torch limits the graphs of
    all networks together, and would leave those beyond uncompiled.
    """
    torch.compiler.reset()
    for module in method.modules():
        if isinstance(module, Network):
            module.compile(**_HOW)


@contextmanager
def compiling() -> Iterator[None]:
    """Turns what a compiler says in pages into one line.

    Raises:
        UserError: a network cannot be compiled.
    """
    try:
        yield
    except ShortenTraceback as error:  # of a compiler, as opposed to the network that it compiles
        cause = getattr(error, "inner_exception", error)
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".:")
        raise UserError(
            f"engine.compile: a network cannot be compiled here ({reason}); a CPU needs a C++ compiler (g++) and a GPU "
            "triton; install it, or use compile: false"
        ) from error
