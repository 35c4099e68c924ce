"""The authors' iMAS (github.com/ZhenZHAO/iMAS), called from a checkout: their functions in the order of their loop.

Their step is part of the loop in train_semi.py, so it cannot be called. `Step` calls the same functions in one process,
in fp32, contiguous, without DistributedDataParallel. The settings are those that the logs in their checkout print for
VOC: ResNet-50, output stride 16, no auxiliary loss, cross-entropy, threshold 0.95.
"""

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F
from photographs import Photographs
from PIL import Image
from torch import Tensor, nn

HOME = "github.com/ZhenZHAO/iMAS"
THRESHOLD, EMA_DECAY, UNLABELED_WEIGHT = 0.95, 0.996, 3.0
OPTIMIZER = {"type": "SGD", "kwargs": {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Imas:
    """A checkout of their code.

    Args:
        path: its root.
        device: where to compute.

    Raises:
        UserError: the path is no such checkout, or a package that the code needs is missing.
    """

    name = "imas"

    def __init__(self, path: Path, device: torch.device) -> None:
        names = ["imas.utils.loss_helper", "imas.utils.lr_helper", "imas.dataset.cutmix_tensor",
                 "imas.dataset.pascal_voc", "imas.models.model_helper", "imas.models.resnet", "imas.models.decoder",
                 "train_semi"]  # fmt: skip
        found = peers.modules(f"--peer imas={path}", path, names, HOME)
        self.losses, self.rates, self.cutmix, self.voc, self.models, _, _, self.script = found
        self.path, self.device = path, device
        self.commit = peers.commit(path)

    def easiness(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Computes the easiness of each image of a batch from the logits of both networks."""
        with peers.as_written_for(self.device):
            return self.losses.compute_ulb_hardness_all(student, teacher, THRESHOLD)[0]

    def views(self, long_side: int, crop: int) -> Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor, Tensor]]:
        """Returns a function (image, mask) -> weak view, strong view, label: their unlabeled data set without files."""
        with peers.as_written_for(self.device):
            weak = self.voc.build_basic_transfrom(_data(long_side, crop), "train", MEAN)
            strong = self.voc.build_additional_strong_transform(_data(long_side, crop))
            normalize = self.voc.voc_dset._get_to_tensor_and_normalize(MEAN, STD)

        def item(image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
            image, mask = weak(image, mask)
            perturbed = strong(image, 0.999)
            image, label = normalize(image, mask)
            perturbed, _ = normalize(perturbed, mask)
            return image, perturbed, label

        return item

    def batches(self, photos: Photographs, crop: int, batch: int, workers: int) -> Iterator[list[Tensor]]:
        """Yields batches of their two loaders, each with `workers` processes. It must run inside `as_written_for`.

        With this `n_sup` their data set draws as many labeled images as there are unlabeled ones.
        """
        number = len(photos.unlabeled)
        cfg = {"dataset": _data(photos.long_side, crop) | {
            "data_root": str(photos.root), "data_list": str(photos.root / "labeled.txt"), "mean": MEAN, "std": STD,
            "batch_size": batch, "workers": workers, "n_sup": 10582 - number,
        }}  # fmt: skip
        labeled, unlabeled = self.voc.build_voc_semi_loader("train", cfg)
        while True:
            for (_, image, label), (_, weak, strong, _) in zip(labeled, unlabeled, strict=True):
                yield [tensor.cuda() for tensor in (image, label, weak, strong)]

    def network(self, num_classes: int) -> nn.Module:
        """Builds their DeepLabV3+ with random weights."""
        net = {
            "num_classes": num_classes,
            "sync_bn": False,
            "ema_decay": EMA_DECAY,
            "encoder": {
                "type": "imas.models.resnet.resnet50",
                "pretrain": None,
                "kwargs": {"multi_grid": True, "zero_init_residual": True, "fpn": True, "pretrained": False,
                           "replace_stride_with_dilation": [False, False, True]},
            },
            "decoder": {
                "type": "imas.models.decoder.dec_deeplabv3_plus",
                "kwargs": {"rep_head": False, "inner_planes": 256, "low_conv_planes": 48, "dilations": [6, 12, 18]},
            },
        }  # fmt: skip
        return self.models.ModelBuilder(net).to(self.device)

    def sliding(self, network: nn.Module, image: Tensor, mask: Tensor, window: int, num_classes: int) -> float:
        """Computes the mIoU of one normalized image, with a mask on the CPU, by their sliding evaluation."""
        cfg = {
            "net": {"num_classes": num_classes},
            "dataset": {"ignore_label": 255, "val": {"crop": {"size": [window, window]}}},
        }
        with peers.as_written_for(self.device):
            found = self.script.validate_citys(network, peers.Drawer(0, image, mask), 0, peers.QUIET, cfg)
        return float(found)

    def firing_rate(self) -> float | None:
        """Returns how often CutMix fires in training: the mean easiness in their logs of ResNet-50 on VOC."""
        values = [
            float(value)
            for log in sorted((self.path / "training-imas-logs" / "logs-semi" / "voc-r50").rglob("*.log"))
            for value in re.findall(r"AvgHard:(\d\.\d+)", log.read_text(encoding="utf-8", errors="replace"))
        ]
        return statistics.mean(values) if values else None


class Step:
    """Their training step."""

    def __init__(self, peer: Imas, num_classes: int) -> None:
        self.peer = peer
        peers.seed(0)
        self.student, self.teacher = (peer.network(num_classes) for _ in range(2))
        for own, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.requires_grad_(False)
            own.data = its.data
        self.labeled_loss = peer.losses.get_criterion({
            "criterion": {"type": "CELoss", "kwargs": {"use_weight": False}}, "net": {},
            "dataset": {"ignore_label": 255},
        })  # fmt: skip
        rate = OPTIMIZER["kwargs"]["lr"]  # type: ignore[index]
        groups = [
            {"params": self.student.encoder.parameters(), "lr": rate},
            {"params": self.student.decoder.parameters(), "lr": 10 * rate},
        ]
        self.optimizer = peer.rates.get_optimizer(groups, OPTIMIZER)
        self.taken = 0

    def take(self, image: Tensor, label: Tensor, weak: Tensor, strong: Tensor, fires: bool) -> float:
        """Takes one step on a batch whose views exist already. `fires` says whether CutMix fires."""
        with peers.as_written_for(self.peer.device):
            return self._take(image, label, weak, strong, fires)

    def _take(self, image: Tensor, label: Tensor, weak: Tensor, strong: Tensor, fires: bool) -> float:
        losses, student, teacher = self.peer.losses, self.student, self.teacher
        with torch.no_grad():
            student.eval()
            by_student, _ = student(weak)
            teacher.eval()
            by_teacher, _ = teacher(weak)
            easy, _, ratio = losses.compute_ulb_hardness_all(by_student, by_teacher, THRESHOLD)
            ratio = ratio.mean()
            sure, pseudo = F.softmax(by_teacher, dim=1).max(dim=1)
            del by_student, by_teacher
        student.train()
        listed = easy.cpu().numpy().tolist()
        share = torch.from_numpy(np.array(listed, dtype=np.float32).reshape(-1, 1, 1, 1)).to(weak.device)
        strong = strong * share + weak * (1.0 - share)

        batches = [image, weak, strong]
        if fires:
            mixed, mixed_pseudo, mixed_sure = self.peer.cutmix.cut_mix_by_hardness(
                weak, pseudo, sure, hardness=listed, scale=[0.1, 0.9]
            )
            batches.insert(2, mixed)
        logits, _ = student(torch.cat(batches))
        split = logits.split([len(batch) for batch in batches])
        del logits
        labeled = self.labeled_loss(split[0], label)
        unlabeled = losses.compute_unsupervised_loss_by_threshold(split[-1], pseudo, sure, THRESHOLD, easy)
        if fires:
            on_mixed = losses.compute_unsupervised_loss_by_threshold(
                split[2], mixed_pseudo, mixed_sure, THRESHOLD, easy
            )
            unlabeled = (unlabeled + on_mixed) * 0.5
        loss = labeled + UNLABELED_WEIGHT * unlabeled

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average()
        return labeled.item() + unlabeled.item() + ratio.item()  # they log all three in every step

    @torch.no_grad()
    def average(self) -> None:
        """Updates their moving average: parameters and buffers, one by one."""
        decay = min(1 - 1 / (self.taken + 1), EMA_DECAY)
        for kind in ("parameters", "buffers"):
            for own, its in zip(getattr(self.teacher, kind)(), getattr(self.student, kind)(), strict=True):
                own.data = own.data * decay + its.data * (1 - decay)
        self.taken += 1


def _data(long_side: int, crop: int) -> dict[str, Any]:
    """Makes the data section of their settings. They scale a fixed base size; we scale the size of the image."""
    return {
        "ignore_label": 255,
        "flip": True,
        "rand_resize": [0.5, 2.0],
        "resize_base_size": long_side,
        "strong_aug": {"num_augs": 2},
        "crop": {"type": "rand", "size": [crop, crop]},
    }
