"""CNN: a small convolutional network that learns CIFAR-10 in minutes.

Convolutions look for small patterns, the same ones all over the picture; pooling halves the grid,
so that the next patterns are made of what was found in a window twice as wide (LeCun et al. 1998).
This network follows Jordan 2024 ("94% on CIFAR-10 in 3.29 seconds on a single GPU"):

    picture                           (batch, 3, 32, 32)
      -> whitening, act               (batch, 24, 31, 31)
      -> group 1                      (batch, 64, 15, 15)     a group: conv, pool, norm, act,
      -> group 2                      (batch, 256, 7, 7)               conv, norm, act
      -> group 3                      (batch, 256, 3, 3)
      -> maximum over the grid        (batch, 256)
      -> linear, times logit_scale    (batch, num_labels)

What makes it quick to train: the first layer is not learned but computed (`init_whitening`); every
other filter bank begins as the identity, so that pictures pass through all of it from the first
step; each normalisation has a shift but no scale, and keeps up with the last few batches.
"""

from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .convolution import (
    activation,
    check_convolution_config,
    check_pictures,
    classification_loss,
    convolution,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "cnn.CNNConfig",
    "AutoModel": "cnn.CNNModel",
    "AutoModelForImageClassification": "cnn.CNNForImageClassification",
}


class CNNConfig(PreTrainedConfig):
    """The shape of a CNN.

    Args:
        num_channels: of the pictures; 3 for RGB.
        whitening: the first layer is not learned but computed: call `init_whitening` with pictures
            before training, as train/cnn.py does, or it stays random.
        whitening_size: side of the first layer's filters, in pixels; there are two of them for each
            of the num_channels * whitening_size^2 numbers that they see.
        hidden_sizes: channels of each group; each halves height and width.
        depth: convolutions of a group.
        pool_size: side of the windows of which pooling takes the largest value, at every second
            pixel; windows of 3 overlap.
        pool_blur: pooling takes the mean of four maxima, those of the windows of pool_size - 1 in
            each window, rather than one maximum; after Zhang 2019, "Making convolutional networks
            shift-invariant again", but before norm and activation, and with the smallest filter.
        dirac_init: filters begin as the identity rather than at random.
        dropout: probability that a feature is left out in training, before the classifier.
        hidden_act: nonlinearity, a name in transformers' ACT2FN.
        batch_norm_momentum: weight of the newest batch in the running averages of mean and
            variance.
        logit_scale: the scores are multiplied by it, so that they begin small.
        initializer_range: standard deviation of the linear layer's new weights.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-cnn"

    num_channels: int = 3
    whitening: bool = False
    whitening_size: int = 2
    hidden_sizes: list[int] = (64, 256, 256)  # a tuple only as a default: made a list below
    depth: int = 2
    pool_size: int = 2
    pool_blur: bool = False
    dirac_init: bool = True
    dropout: float = 0.0
    hidden_act: str = "gelu"
    batch_norm_momentum: float = 0.4
    logit_scale: float = 1 / 256
    initializer_range: float = 1.0

    def __post_init__(self, **kwargs):
        if isinstance(self.hidden_sizes, tuple):
            self.hidden_sizes = list(self.hidden_sizes)
        check_convolution_config(
            self,
            sizes=("num_channels", "whitening_size", "depth", "pool_size"),
            lists=("hidden_sizes",),
        )
        if self.pool_blur and self.pool_size < 3:  # of 2, the four are the pixels: no maxima
            raise ValueError(f"pool_size is {self.pool_size}; with pool_blur it must be at least 3")
        if not self.logit_scale > 0:
            raise ValueError(f"logit_scale is {self.logit_scale}; it must be above 0")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(
                f"batch_norm_momentum is {self.batch_norm_momentum}; it must be in (0, 1]"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)


def keep_fixed(module: nn.Module) -> None:
    """Makes a module's weight a buffer: saved and loaded as before, but not trained.

    (`requires_grad=False` would not last: `from_pretrained` makes parameters anew.)
    """
    weight = module.weight.detach()
    del module.weight
    module.register_buffer("weight", weight)


class Whitening(nn.Conv2d):
    """Filters after which the numbers of a small window are uncorrelated, each of variance 1.

    The principal directions of windows of the training pictures (the eigenvectors v of their
    covariance), each divided by the root of its eigenvalue, and each again with its sign turned,
    since the activation that follows is not symmetric:

        w = +-v / sqrt(eigenvalue + eps)

    Jordan's has a bias, which is learned for some epochs. Here nothing is, so that no gradient has
    to go back through the first group's convolution to the largest grid: 5 % less time an update.
    """

    def __init__(self, channels: int, size: int):
        super().__init__(channels, 2 * channels * size**2, size, bias=False)
        keep_fixed(self)

    @torch.no_grad()
    def fit(self, pixel_values: torch.Tensor, eps: float = 5e-4) -> None:
        """Sets the filters by (count, channels, y, x) pictures, normalised as in training."""
        channels, size = self.in_channels, self.kernel_size[0]
        windows = pixel_values.unfold(2, size, 1).unfold(3, size, 1)
        # (count, channels, y', x', size, size) -> (windows, channels * size * size)
        windows = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * size**2).double()
        values, vectors = torch.linalg.eigh(windows.T @ windows / len(windows))
        filters = (vectors / (values + eps).sqrt()).T.reshape(-1, channels, size, size)
        self.weight.copy_(torch.cat((filters, -filters)))


class ShiftNorm(nn.BatchNorm2d):
    """Normalisation with a shift but no scale: that stays 1."""

    def __init__(self, channels: int, momentum: float):
        super().__init__(channels, momentum=momentum)
        keep_fixed(self)


def pooling(size: int, blur: bool) -> nn.Module:
    """(batch, channels, y, x) -> (batch, channels, (y - size) // 2 + 1, (x - size) // 2 + 1).

    With `blur`, maxima at every pixel, then means of 2 x 2 at every second: also a window of size.
    """
    if not blur:
        return nn.MaxPool2d(size, stride=2)
    return nn.Sequential(nn.MaxPool2d(size - 1, stride=1), nn.AvgPool2d(2, stride=2))


class Group(nn.Module):
    """Convolutions of one width, each with norm and activation; the first also pools."""

    def __init__(self, config: CNNConfig, in_channels: int, out_channels: int):
        super().__init__()
        widths = [in_channels] + config.depth * [out_channels]
        self.convs = nn.ModuleList(convolution(*pair, 3) for pair in pairwise(widths))
        self.norms = nn.ModuleList(
            ShiftNorm(out_channels, config.batch_norm_momentum) for _ in range(config.depth)
        )
        for conv in self.convs:
            conv.norm_follows = True  # Muon lets such filters keep their size
        self.pool = pooling(config.pool_size, config.pool_blur)
        self.act = activation(config.hidden_act)

    def forward(self, hidden_states):
        """(batch, in_channels, y, x) -> (batch, out_channels, y', x').

        y' = (y - pool_size) // 2 + 1, and x' likewise.
        """
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            hidden_states = conv(hidden_states)
            if i == 0:
                hidden_states = self.pool(hidden_states)
            hidden_states = self.act(norm(hidden_states))
        return hidden_states


class CNNPreTrainedModel(PreTrainedModel):
    """What `CNNModel` and its head share: how they load and initialise."""

    config: CNNConfig
    config_class = CNNConfig
    base_model_prefix = "cnn"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["Group"]
    _can_record_outputs = {"hidden_states": Group}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and not isinstance(module, Whitening):
            # Where there are more filters than channels, those beyond are random.
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if self.config.dirac_init:
                init.dirac_(module.weight[: module.in_channels])
        if isinstance(module, Whitening):
            init.orthogonal_(module.weight)  # until `init_whitening` has seen pictures


class CNNModel(CNNPreTrainedModel):
    """Pictures to features: whitening, groups, the maximum over the grid."""

    def __init__(self, config: CNNConfig):
        super().__init__(config)
        first = Whitening(config.num_channels, config.whitening_size)
        if not config.whitening:  # one of the same shape, to be learned
            first = nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, bias=False)
        self.whitening = first
        self.act = activation(config.hidden_act)
        widths = [self.whitening.out_channels, *config.hidden_sizes]
        self.groups = nn.ModuleList(Group(config, *pair) for pair in pairwise(widths))
        self.post_init()

    def init_whitening(self, pixel_values: torch.Tensor) -> None:
        """Computes the first layer from some thousand training pictures, before training.

        Args:
            pixel_values: (count, num_channels, y, x), normalised as in training.

        Raises:
            ValueError: the first layer is to be learned, or the pictures do not fit it.
        """
        if not self.config.whitening:
            raise ValueError("this model has whitening=False: its first layer is learned")
        check_pictures(pixel_values, self.config.num_channels)
        if min(pixel_values.shape[2:]) < self.config.whitening_size:
            raise ValueError(
                f"whitening_size is {self.config.whitening_size}; windows of pictures of "
                f"{pixel_values.shape[3]} x {pixel_values.shape[2]} are smaller"
            )
        self.whitening.fit(pixel_values)

    @capture_outputs
    def forward(
        self, pixel_values: torch.FloatTensor, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Reads a batch of pictures.

        Args:
            pixel_values: (batch, num_channels, y, x), normalised as the image processor does it;
                large enough for each group to halve them.

        Returns:
            `last_hidden_state` (batch, channels, y', x'); `pooler_output` (batch, channels), its
            maximum over the grid; where asked for, `hidden_states` after whitening and each group.

        Raises:
            ValueError: the pictures have another number of channels, or are too small.
        """
        check_pictures(pixel_values, self.config.num_channels)
        smallest = self.smallest_size()
        if min(pixel_values.shape[2:]) < smallest:
            height, width = pixel_values.shape[2:]
            raise ValueError(
                f"pictures of {width} x {height} are too small; {smallest} is the least"
            )
        hidden_states = self.act(self.whitening(pixel_values.to(self.dtype)))
        for group in self.groups:
            hidden_states = group(hidden_states)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_states, pooler_output=hidden_states.amax((2, 3))
        )

    def smallest_size(self) -> int:
        """The least height and width of a picture, in pixels, of which a grid of 1 x 1 is left."""
        size = 1
        for _ in self.groups:
            size = 2 * (size - 1) + self.config.pool_size
        return size + self.config.whitening_size - 1


class CNNForImageClassification(CNNPreTrainedModel):
    """CNN with a score for each class; works with `pipeline("image-classification")`."""

    # The loss is a mean over the batch that was given; Trainer divides by what it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config: CNNConfig):
        super().__init__(config)
        self.cnn = CNNModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """Scores the classes; arguments as in `CNNModel.forward`, and:

        Args:
            labels: (batch,), the number of each picture's class; or (batch, num_labels), the
                probability of each class, as mixing pictures gives it.

        Returns:
            `loss`: mean of -log p(class), in nats, where labels were given; `logits` (batch,
            num_labels); `hidden_states` where asked for.
        """
        outputs = self.cnn(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output)) * self.config.logit_scale
        return ImageClassifierOutputWithNoAttention(
            loss=classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )


__all__ = ["CNNConfig", "CNNForImageClassification", "CNNModel"]
