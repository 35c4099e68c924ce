"""UniMatch (github.com/LiheYoung/UniMatch), called from a checkout: another method, a second point of reference.

It has one network and no teacher. A step has three forward passes: in eval mode on the weak views of other images, in
train mode on labeled and weak views with and without feature dropout, and on two strong views. The step is part of the
loop in unimatch.py; `Step` calls the same functions in fp32, contiguous, in one process.
"""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import peers
import torch
from photographs import Photographs
from torch import Tensor, nn
from torch.utils.data import DataLoader

HOME = "github.com/LiheYoung/UniMatch"
THRESHOLD = 0.95


class UniMatch:
    """A checkout of its code.

    Args:
        path: its root.
        device: where to compute.

    Raises:
        UserError: the path is no such checkout, or a package that the code needs is missing.
    """

    name = "unimatch"

    def __init__(self, path: Path, device: torch.device) -> None:
        names = ["model.backbone.resnet", "model.semseg.deeplabv3plus", "dataset.semi", "supervised"]
        found = peers.modules(f"--peer unimatch={path}", path, names, HOME)
        self.resnet, self.models, self.data, self.script = found
        self.path, self.device = path, device
        self.commit = peers.commit(path)

    def network(self, num_classes: int) -> nn.Module:
        """Builds their DeepLabV3+ with random weights, without the pretrained weights that their code asks for."""
        cfg = {
            "backbone": "resnet50",
            "replace_stride_with_dilation": [False, False, True],
            "dilations": [6, 12, 18],
            "nclass": num_classes,
        }
        build = self.resnet.resnet50
        with patch.object(self.resnet, "resnet50", lambda pretrained, **options: build(False, **options)):
            return self.models.DeepLabV3Plus(cfg).to(self.device)

    def batches(self, photos: Photographs, crop: int, batch: int, workers: int) -> Iterator[list[Tensor]]:
        """Yields batches of its labeled and unlabeled loaders, on the device. It must run inside `as_written_for`.

        Its second unlabeled loader, for the images to paste, is left out. That makes it faster.
        """

        def data(mode: str, name: str, number: int | None = None) -> DataLoader[list[Tensor]]:
            images = self.data.SemiDataset("pascal", str(photos.root), mode, crop, str(photos.root / name), number)
            return DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True)

        unlabeled = data("train_u", "unlabeled_pairs.txt")
        labeled = data("train_l", "labeled_pairs.txt", len(photos.unlabeled))
        while True:
            for first, second in zip(labeled, unlabeled, strict=True):
                yield [tensor.cuda() for tensor in (*first, *second)]

    def sliding(self, network: nn.Module, image: Tensor, mask: Tensor, window: int, num_classes: int) -> float:
        """Computes the mIoU of one image with its sliding evaluation, which supports only 19 classes."""
        cfg = {"crop_size": window, "nclass": num_classes}
        with peers.as_written_for(self.device):
            found, _ = self.script.evaluate(network, peers.Drawer(image, mask, ["0"]), "sliding_window", cfg)
        return float(found) / 100


class Step:
    """Its training step."""

    def __init__(self, peer: UniMatch, num_classes: int) -> None:
        self.peer = peer
        peers.seed(0)
        self.network = peer.network(num_classes)
        head = [value for name, value in self.network.named_parameters() if "backbone" not in name]
        groups = [{"params": self.network.backbone.parameters(), "lr": 0.001}, {"params": head, "lr": 0.01}]
        self.optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9, weight_decay=1e-4)
        self.labeled_loss = nn.CrossEntropyLoss(ignore_index=255)
        self.pixel_loss = nn.CrossEntropyLoss(reduction="none")

    def take(self, image: Tensor, label: Tensor, weak: Tensor, strong: Tensor) -> float:
        """Takes one step. The second unlabeled batch and strong view are the first ones in another order."""
        network, other = self.network, weak.flip(0)
        box = torch.zeros(weak.shape[0], *weak.shape[2:], dtype=torch.bool, device=weak.device)
        side = weak.shape[-1] // 2
        box[:, :side, :side] = True
        with torch.no_grad():
            network.eval()
            found = network(other)
            other_sure, other_pseudo = found.softmax(dim=1).max(dim=1)
        first, second = strong.clone(), strong.clone()
        inside = box.unsqueeze(1).expand(first.shape)
        first[inside], second[inside] = strong.flip(0)[inside], strong.flip(0)[inside]

        network.train()
        both, dropped = network(torch.cat((image, weak)), True)
        by_label, by_weak = both.split([len(image), len(weak)])
        by_dropped = dropped[len(image) :]
        views = network(torch.cat((first, second))).chunk(2)
        sure, pseudo = by_weak.detach().softmax(dim=1).max(dim=1)
        losses = []
        for view in views:
            target, trust = pseudo.clone(), sure.clone()
            target[box], trust[box] = other_pseudo[box], other_sure[box]
            losses.append((self.pixel_loss(view, target) * (trust >= THRESHOLD)).mean())
        losses.append((self.pixel_loss(by_dropped, pseudo) * (sure >= THRESHOLD)).mean())
        labeled = self.labeled_loss(by_label, label)
        loss = (labeled + losses[0] * 0.25 + losses[1] * 0.25 + losses[2] * 0.5) / 2.0
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
