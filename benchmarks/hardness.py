"""Computing the easiness of a batch, from label maps and from the logits of both networks.

16 images of 513 x 513 px with 21 classes: python benchmarks/hardness.py [--peer imas=PATH]
"""

import common
import torch
from peer_imas import THRESHOLD, Imas
from torch import Tensor

from semiseg.hardness import easiness
from semiseg.models.build import Network
from semiseg.models.predict import predict
from semiseg.types import Normalization, Prediction

BACKGROUND = 0


class Given(Network):
    """A network that always returns the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(torch.nn.Identity(), Normalization(), 1)
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        return self.logits


def logits(batch: int, classes: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Makes logits of two networks, in blocks: about two of three pixels are confident, nine of ten agree."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(classes, (batch, 1, 9, 9), generator=generator).float()
    first = torch.nn.functional.interpolate(blocks, (side, side)).long()
    other = torch.rand(first.shape, generator=generator) < 0.1
    second = torch.where(other, torch.randint(classes, first.shape, generator=generator), first)
    noise = torch.randn(2, batch, classes, side, side, generator=generator)
    heights = 12 * torch.rand(2, *first.shape, generator=generator)
    student, teacher = (
        each.scatter_add_(1, label, height)
        for each, label, height in zip(noise.unbind(), (first, second), heights.unbind(), strict=True)
    )
    return student.to(device), teacher.to(device)


def predictions(batch: int, classes: int, side: int, device: torch.device) -> tuple[Prediction, Prediction]:
    """Makes the predictions of two networks with such logits."""
    image = torch.empty(batch, 3, side, side, device=device)
    student, teacher = (predict(Given(each), image) for each in logits(batch, classes, side, device))
    return student, teacher


def official(student: Prediction, teacher: Prediction) -> Tensor:
    """Computes easiness as the authors do: no padding, background without weight, 0 if there is only background."""
    return easiness(student, teacher, THRESHOLD, ignore_class=BACKGROUND, all_ignored_is_hard=True)


def measure(run: common.Settings, results: common.Results) -> None:
    """Checks that our easiness and the peer's agree on the same logits, and times both."""
    batch, side, classes = run.size((16, 513, 21), (16, 513, 21), (2, 33, 5))
    results.settings |= {"batch": batch, "side, px": side, "classes": classes}
    student, teacher = logits(batch, classes, side, run.device)
    image = torch.empty(batch, 3, side, side, device=run.device)

    def from_logits() -> Tensor:
        return official(predict(Given(student), image), predict(Given(teacher), image))

    maps = predict(Given(student), image), predict(Given(teacher), image)
    candidates = {"semiseg, from label maps": lambda: official(*maps), "semiseg, from logits": from_logits}
    if path := run.peers.get("imas"):
        peer = Imas(path, run.device)
        results.peers["imas"] = peer.commit
        torch.testing.assert_close(from_logits(), peer.easiness(student, teacher), atol=1e-4, rtol=0)
        candidates["imas, from logits"] = lambda: peer.easiness(student, teacher)
    results.time(candidates, usual=9)
    if "imas" in results.peers:
        results.ratio("imas / semiseg, from logits", "imas, from logits", "semiseg, from logits")
        results.ratio("imas from logits / semiseg from label maps", "imas, from logits", "semiseg, from label maps")
        results.note("Both are given the same logits and agree to 1e-4; theirs includes the copy to the CPU.")
    if run.brief:
        return
    del student, teacher, maps, candidates

    def at(batch: int, classes: int, side: int) -> object:
        given = predictions(batch, classes, side, run.device)
        return lambda: official(*given)

    sides = run.size((129, 257, 513), (129, 257, 513), (17, 33))
    middle, few = sides[1], run.size(4, 16, 2)
    batches, tables = run.size((1, 4, 16), (4, 16, 64), (1, 2)), run.size((2, 21, 150), (2, 21, 150), (2, 5))
    results.grow("easiness", "px an image", {side * side: at(few, 21, side) for side in sides}, 9)
    results.grow("easiness", "images a batch", {batch: at(batch, 21, middle) for batch in batches}, 9)
    results.grow("easiness", "classes", {classes: at(few, classes, middle) for classes in tables}, 9)


if __name__ == "__main__":
    common.main("hardness", __doc__, measure)
