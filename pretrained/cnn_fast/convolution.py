"""The blocks of a convolutional network: convolution, normalisation, activation, stochastic depth.

A convolution looks at a small window (3x3) of the picture, with the same weights wherever it stands
(LeCun et al. 1989). Batch normalisation (Ioffe & Szegedy 2015) keeps what comes out in range: in
training, each channel of the batch gets mean 0 and variance 1, then a learned scale and shift:

    y = weight * (x - mean) / sqrt(variance + eps) + bias     mean, variance over (batch, y, x)

In evaluation, running averages of the means and variances that training saw stand in for the
batch's own; an example's answer then does not depend on its neighbours.
"""

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from transformers import initialization as init
from transformers.activations import ACT2FN


def check_convolution_config(config, sizes: tuple[str, ...], lists: tuple[str, ...] = ()) -> None:
    """Raises ValueError, in one line that says what would be right, for settings that cannot be.

    Args:
        config: with `hidden_act` and `initializer_range`, of a classifier.
        sizes: names of its settings that are whole numbers.
        lists: names of its settings that are lists of whole numbers.
    """
    for name in sizes:
        value = getattr(config, name)
        if not _is_size(value):
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    for name in lists:
        value = getattr(config, name)
        if not isinstance(value, list) or not value or not all(map(_is_size, value)):
            raise ValueError(
                f"{name} is {value!r}; it must be a list of whole numbers of at least 1"
            )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r} is unknown to transformers' ACT2FN")
    if not config.initializer_range > 0:
        raise ValueError(f"initializer_range is {config.initializer_range}; it must be above 0")
    if config.problem_type not in (None, "single_label_classification"):
        raise ValueError(f"problem_type is {config.problem_type!r}; a picture has one class here")


def _is_size(value) -> bool:
    return isinstance(value, int) and value >= 1


def check_pictures(pixel_values: torch.Tensor, num_channels: int) -> None:
    """Raises ValueError for what is no batch of pictures with so many channels."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must be (batch, {num_channels}, height, width), "
            f"not {tuple(pixel_values.shape)}"
        )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Mean of -log p(class), in nats; None without labels.

    Args:
        logits: (batch, num_labels).
        labels: (batch,), the number of each picture's class; or (batch, num_labels), the
            probability of each class, as mixing pictures gives it.

    Raises:
        ValueError: there is one class only, or labels, in whole numbers, are for several.
    """
    if labels is None:
        return None
    if logits.shape[1] < 2:
        raise ValueError("num_labels is 1: there is nothing to choose from; give at least 2")
    if labels.ndim == 2 and not labels.is_floating_point() and (labels.sum(1) != 1).any():
        raise ValueError("a picture has one class here, and these labels are for several")
    labels = labels.float() if labels.ndim == 2 else labels
    return nn.functional.cross_entropy(logits.float(), labels)


def activation(name: str) -> nn.Module:
    """The nonlinearity of this name. ReLU works in place, which saves a copy of each picture.

    It always stands behind a convolution, a normalisation or a sum, whose own backward does not
    need what they gave.
    """
    return nn.ReLU(inplace=True) if name == "relu" else ACT2FN[name]


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
    """(batch, in_channels, y, x) -> (batch, out_channels, ceil(y / stride), ceil(x / stride)).

    Without a bias: the normalisation before or after it has one.
    """
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


class ConvNorm(nn.Module):
    """Convolution, normalisation and, where one is named, activation."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, hidden_act=None):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel_size, stride)
        self.conv.norm_follows = True  # Muon lets such filters keep their size
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = activation(hidden_act) if hidden_act else nn.Identity()

    def forward(self, hidden_states):
        """(batch, in_channels, y, x) -> (batch, out_channels, y / stride, x / stride)."""
        return self.act(self.norm(self.conv(hidden_states)))

    def fold(self) -> None:
        """Makes the normalisation of evaluation, a scale and a shift, part of the filters.

        norm(conv(x)) = (weight * scale) * x + shift, scale = norm.weight / sqrt(variance + eps)
        """
        self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
        self.norm = nn.Identity()


class NormActivation(nn.Module):
    """Normalisation and activation, for what comes before a convolution."""

    def __init__(self, channels: int, hidden_act: str):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = activation(hidden_act)

    def forward(self, hidden_states):
        """(batch, channels, y, x) -> the same shape."""
        return self.act(self.norm(hidden_states))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, some examples skip the branch.

    Each with probability `rate`; what the others get is larger by 1 / (1 - rate), so that the
    expectation is that of evaluation, where none skips.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch):
        """(batch, channels, y, x) -> the same shape."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


@torch.no_grad()
def init_convolution_weights(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, "Delving deep into rectifiers"), for one module.

    Normal with variance 2 / (out_channels * kernel_size^2): gradients keep their size on the way
    back through convolution and ReLU. What carries `starts_at_zero` is zero.
    """
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if getattr(module, "starts_at_zero", False):
        init.zeros_(module.weight)
