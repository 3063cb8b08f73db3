"""Wide residual networks (Zagoruyko & Komodakis, 2016, arXiv 1605.07146), which torchvision does not have for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions (the paper's B(3, 3)), without dropout."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        # The paper's shortcut: identity where the shape stays, else a 1x1 convolution of the activated input.
        same = channels_in == channels_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return out + shortcut


class WideResNet(nn.Module):
    """WRN-depth-width: a 3x3 stem of 16 channels, then three groups of (depth - 4) / 6 blocks, 16, 32 and 64 times `width`.

    Input (N, channels, H, W) float; output (N, classes). At (3, 32, 32), 10 classes, WRN-28-10 has 36.5 million parameters,
    as in the paper's Table 4. Larger images, from 96 pixels a side on, enter through a stem of stride 2 and a max-pool, as
    ImageNet models do: the paper's own stem would keep 16 channels at full size.

    >>> sum(p.numel() for p in WideResNet(3, 10, depth=28, width=10).parameters())
    36479194
    """

    def __init__(self, channels: int, classes: int, *, depth: int, width: int, large: bool = False) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4, not {depth}")
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2 if large else 1, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        groups: list[nn.Module] = []
        channels_in = 16
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            blocks = []
            for i in range((depth - 4) // 6):
                blocks.append(WideBlock(channels_in, base * width, stride if i == 0 else 1))
                channels_in = base * width
            groups.append(nn.Sequential(*blocks))
        self.group1, self.group2, self.group3 = groups
        self.bn = nn.BatchNorm2d(channels_in)
        self.fc = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.pool(self.conv1(x)))))
        x = F.relu(self.bn(x), inplace=True)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
