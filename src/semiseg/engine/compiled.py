"""Networks compiled with torch.compile (`engine.compile`).

Only calls of a network are compiled, in place. Its class, names and state dict do not change, so checkpoints, EMA and
the wrappers of several processes work as before. Training calls networks with few shapes; each shape has its own graph.
Evaluation has images of any size and does not use the graphs (`semiseg.models.predict.whole`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import ShortenTraceback

from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.models.build import Network

# With fallback_random dropout draws the same numbers as in a run that is not compiled.
_HOW: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}


def compile_networks(method: SemiMethod) -> None:
    """Makes torch compile the method's networks when they are first called.

    It discards everything that was compiled in this process before: torch limits the number of graphs of all networks
    together, and would not compile networks above the limit.
    """
    torch.compiler.reset()
    for module in method.modules():
        if isinstance(module, Network):
            module.compile(**_HOW)


@contextmanager
def compiling() -> Iterator[None]:
    """Turns the long error of a compiler into one line.

    Raises:
        UserError: a network cannot be compiled.
    """
    try:
        yield
    except ShortenTraceback as error:  # an error of the compiler, not of the network
        cause = getattr(error, "inner_exception", error)
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".:")
        raise UserError(
            f"engine.compile: a network cannot be compiled here ({reason}); a CPU needs a C++ compiler (g++) and a GPU "
            "triton; install it, or use compile: false"
        ) from error
