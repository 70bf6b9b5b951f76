"""ResNet: a picture classifier that is easy to make deep.

A deeper plain network should be no worse than a shallow one: its extra layers need only pass on
what they get. Trained by gradients, it is worse, on the training data itself. The residual network
(He et al. 2015, "Deep residual learning for image recognition") makes passing on the default, and
lets each block learn what to add:

    x = act(shortcut(x) + branch(x))      branch: conv, norm, act, conv, norm

The shortcut is x itself, except where a stage begins, with more channels on a grid of half the
height and width. Shapes of a ResNet-18 for CIFAR (`stem="cifar"`) and for ImageNet:

    picture                      (batch, 3, 32, 32)         (batch, 3, 224, 224)
      -> stem                    (batch, 64, 32, 32)        (batch, 64, 56, 56)
      -> stage 1, 2 blocks       (batch, 64, 32, 32)        (batch, 64, 56, 56)
      -> stage 2, 2 blocks       (batch, 128, 16, 16)       (batch, 128, 28, 28)
      -> stage 3, 2 blocks       (batch, 256, 8, 8)         (batch, 256, 14, 14)
      -> stage 4, 2 blocks       (batch, 512, 4, 4)         (batch, 512, 7, 7)
      -> mean over the grid      (batch, 512)
      -> linear                  (batch, num_labels): scores, whose softmax is the probabilities

`shortcut="none"` gives the plain network, to see what shortcuts cure. Activation checkpointing is
not offered: it would run each BatchNorm twice, and its running averages would count a batch double.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .convolution import (
    ConvNorm,
    DropPath,
    NormActivation,
    activation,
    check_convolution_config,
    check_pictures,
    classification_loss,
    convolution,
    init_convolution_weights,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "resnet.ResNetConfig",
    "AutoModel": "resnet.ResNetModel",
    "AutoModelForImageClassification": "resnet.ResNetForImageClassification",
}

CHOICES = {
    "stem": ("imagenet", "cifar"),
    "layer_type": ("basic", "bottleneck"),
    "shortcut": ("projection", "zero_pad", "none"),
}
REDUCTION = 4  # a bottleneck's 3x3 convolution has this much fewer channels


class ResNetConfig(PreTrainedConfig):
    """The shape of a ResNet; the defaults are those of ResNet-18, `PRESETS` has others.

    Label smoothing is not here but with the training: Trainer's `label_smoothing_factor` where
    labels are numbers of classes, the probabilities themselves where labels are probabilities.

    Args:
        num_channels: of the pictures; 3 for RGB.
        stem: "imagenet" (7x7 with stride 2, then max-pooling: a quarter of height and width) or
            "cifar" (3x3: the picture keeps its size).
        embedding_size: channels after the stem.
        hidden_sizes: channels of each stage.
        depths: blocks of each stage.
        layer_type: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        hidden_act: nonlinearity, a name in transformers' ACT2FN.
        shortcut: where the shape changes: "projection" (1x1 convolution; option B of the paper) or
            "zero_pad" (every other pixel, new channels zero; option A, no parameters). "none": no
            shortcut in any block, a plain network.
        pre_activation: norm and activation before each convolution, not after (He et al. 2016).
        downsample_in_first_stage: the first stage halves height and width, too.
        downsample_in_bottleneck: the first 1x1 convolution halves, as in the paper, rather than the
            3x3 (ResNet v1.5, which scores better).
        zero_init_residual: branches begin as zero, so that each block passes on what it gets; but
            for those where "zero_pad" adds channels, which would be dead.
        drop_path_rate: probability that an example skips the last branch in training; rises
            linearly from the first block.
        initializer_range: standard deviation of the linear layer's new weights.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-resnet"

    num_channels: int = 3
    stem: str = "imagenet"
    embedding_size: int = 64
    hidden_sizes: list[int] = (64, 128, 256, 512)  # a tuple only as a default: made a list below
    depths: list[int] = (2, 2, 2, 2)
    layer_type: str = "basic"
    hidden_act: str = "relu"
    shortcut: str = "projection"
    pre_activation: bool = False
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    zero_init_residual: bool = True
    drop_path_rate: float = 0.0
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs):
        for name in ("hidden_sizes", "depths"):
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        self._check()
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def _check(self):
        check_convolution_config(
            self, sizes=("num_channels", "embedding_size"), lists=("hidden_sizes", "depths")
        )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}"
                )
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes {self.hidden_sizes} and depths {self.depths} must be equally long: "
                f"channels and blocks of each stage"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be in [0, 1)")
        if self.shortcut == "none" and self.drop_path_rate:
            raise ValueError(
                "without shortcuts nothing is left of an example that skips a branch; "
                "set drop_path_rate=0 or another shortcut"
            )
        widths = [self.embedding_size, *self.hidden_sizes]
        if self.shortcut == "zero_pad" and widths != sorted(widths):
            raise ValueError(
                f"zero_pad can only add channels, but embedding_size and hidden_sizes are "
                f"{widths}; let them grow, or set shortcut='projection'"
            )
        bottleneck = self.layer_type == "bottleneck"
        if bottleneck and any(size % REDUCTION for size in self.hidden_sizes):
            raise ValueError(
                f"bottlenecks need hidden_sizes that {REDUCTION} divides, not {self.hidden_sizes}"
            )
        if self.downsample_in_bottleneck and not bottleneck:
            raise ValueError("downsample_in_bottleneck needs layer_type='bottleneck'")


def _cifar(n: int) -> dict:
    """The paper's networks for CIFAR-10, of 6n + 2 layers (section 4.2)."""
    return {
        "stem": "cifar",
        "embedding_size": 16,
        "hidden_sizes": (16, 32, 64),
        "depths": (n, n, n),
        "shortcut": "zero_pad",
    }


_WIDE = {"layer_type": "bottleneck", "hidden_sizes": (256, 512, 1024, 2048)}
# ResNetConfig(**PRESETS["resnet50"], num_labels=1000)
PRESETS = {
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet34": {"depths": (3, 4, 6, 3)},
    "resnet50": _WIDE | {"depths": (3, 4, 6, 3)},
    "resnet20_cifar": _cifar(3),
    "resnet56_cifar": _cifar(9),
}


# ---------------------------------------------------------------------------------------- blocks


class ZeroPadShortcut(nn.Module):
    """Option A: every other pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, hidden_states):
        """(batch, channels, y, x) -> (batch, channels + new_channels, y / stride, x / stride)."""
        kept = hidden_states[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.new_channels))


def branch_plan(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> list:
    """The convolutions of a branch: (in_channels, out_channels, kernel_size, stride) of each."""
    if config.layer_type == "basic":
        return [(in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1)]
    width = out_channels // REDUCTION
    first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
    return [
        (in_channels, width, 1, first),
        (width, width, 3, second),
        (width, out_channels, 1, 1),
    ]


def make_shortcut(config: ResNetConfig, in_channels, out_channels, stride, projection):
    """What stands beside a branch; None in a plain network."""
    if config.shortcut == "none":
        return None
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if config.shortcut == "projection":
        return projection(in_channels, out_channels, 1, stride)
    return ZeroPadShortcut(out_channels - in_channels, stride)


def make_drop_path(config: ResNetConfig, number: int) -> DropPath:
    """Deeper blocks are skipped more often: rate * 1/L, 2/L, ..., L/L for L blocks."""
    return DropPath(config.drop_path_rate * (number + 1) / sum(config.depths))


def starts_at_zero(config: ResNetConfig, shortcut: nn.Module | None) -> bool:
    """Whether a new branch beside this shortcut gives zero: the block passes on what it gets.

    Never beside zeros for new channels: a ReLU of nothing but zeros has no gradient, and these
    channels would stay zero through the stage and through training.
    """
    adds_zeros = isinstance(shortcut, ZeroPadShortcut) and shortcut.new_channels
    return config.zero_init_residual and shortcut is not None and not adds_zeros


class Block(nn.Module):
    """act(shortcut(x) + branch(x)); the branch is convolutions, each with norm and activation."""

    def __init__(self, config: ResNetConfig, in_channels, out_channels, stride, number):
        super().__init__()
        *others, last = branch_plan(config, in_channels, out_channels, stride)
        self.branch = nn.Sequential(
            *(ConvNorm(*one, hidden_act=config.hidden_act) for one in others),
            ConvNorm(*last),  # its activation comes after the sum
        )
        self.drop_path = make_drop_path(config, number)
        self.shortcut = make_shortcut(config, in_channels, out_channels, stride, ConvNorm)
        self.act = activation(config.hidden_act)
        # Goyal et al. 2017, section 5.1: a scale of zero in the last norm makes the branch zero.
        self.branch[-1].norm.starts_at_zero = starts_at_zero(config, self.shortcut)

    def forward(self, hidden_states):
        """(batch, in_channels, y, x) -> (batch, out_channels, y / stride, x / stride)."""
        branch = self.drop_path(self.branch(hidden_states))
        if self.shortcut is not None:
            branch += self.shortcut(hidden_states)  # in place: one copy less in memory
        return self.act(branch)


class PreActivationBlock(nn.Module):
    """shortcut(x) + branch(x); the branch is norm, activation, convolution, and again.

    Nothing but sums lies on the way from the first block to the last, forth and back (He et al.
    2016, "Identity mappings in deep residual networks"). As there, a projection sees x after norm
    and activation, and the first block finds the stem's activation done.
    """

    def __init__(self, config: ResNetConfig, in_channels, out_channels, stride, number):
        super().__init__()
        act = config.hidden_act
        first, *others = branch_plan(config, in_channels, out_channels, stride)
        self.pre_activation = NormActivation(in_channels, act) if number else nn.Identity()
        self.branch = nn.Sequential(convolution(*first))
        for one in others:
            self.branch[-1].norm_follows = True  # Muon lets such filters keep their size
            self.branch.extend([NormActivation(one[0], act), convolution(*one)])
        self.drop_path = make_drop_path(config, number)
        self.shortcut = make_shortcut(config, in_channels, out_channels, stride, convolution)
        # The last convolution, not the last norm: a ReLU of nothing but zeros has no gradient.
        self.branch[-1].starts_at_zero = starts_at_zero(config, self.shortcut)

    def forward(self, hidden_states):
        """(batch, in_channels, y, x) -> (batch, out_channels, y / stride, x / stride)."""
        activated = self.pre_activation(hidden_states)
        branch = self.drop_path(self.branch(activated))
        if self.shortcut is not None:
            projects = isinstance(self.shortcut, nn.Conv2d)
            branch += self.shortcut(activated if projects else hidden_states)
        return branch


class Stage(nn.Module):
    """Blocks of one width; the first of them may halve height and width."""

    def __init__(self, config: ResNetConfig, index: int):
        super().__init__()
        block = PreActivationBlock if config.pre_activation else Block
        widths = [config.embedding_size, *config.hidden_sizes]
        in_channels, out_channels = widths[index : index + 2]
        stride = 2 if index or config.downsample_in_first_stage else 1
        number = sum(config.depths[:index])  # of the first block, counted through all stages
        self.blocks = nn.Sequential(block(config, in_channels, out_channels, stride, number))
        for i in range(1, config.depths[index]):
            self.blocks.append(block(config, out_channels, out_channels, 1, number + i))

    def forward(self, hidden_states):
        """(batch, in_channels, y, x) -> (batch, out_channels, y / stride, x / stride)."""
        return self.blocks(hidden_states)


# ---------------------------------------------------------------------------------------- models


class ResNetPreTrainedModel(PreTrainedModel):
    """What `ResNetModel` and its heads share: how they load and initialise."""

    config: ResNetConfig
    config_class = ResNetConfig
    base_model_prefix = "resnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["Block", "PreActivationBlock"]
    _can_record_outputs = {"hidden_states": Stage}

    def _init_weights(self, module):
        super()._init_weights(module)
        init_convolution_weights(module)

    def fold_norms(self):
        """For inference: each normalisation behind a convolution becomes part of its filters.

        Of `pre_activation` blocks, where it stands before one, only the stem's does.

        The answers stay; a ResNet-50 gives them 1.06 to 1.08 times as fast (benchmarks/resnet.py).
        What is left is not to be trained, and cannot be saved. Returns the model itself.
        """
        for module in self.modules():
            if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
                module.fold()
        return self.eval()

    def save_pretrained(self, *args, **kwargs):
        """transformers' own, but for a model without its norms, which nothing could load."""
        if any(isinstance(m, ConvNorm) and isinstance(m.norm, nn.Identity) for m in self.modules()):
            raise ValueError("the norms of this model are folded: save it before `fold_norms`")
        return super().save_pretrained(*args, **kwargs)


class ResNetModel(ResNetPreTrainedModel):
    """Pictures to features: stem, stages, mean over the grid."""

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        kernel_size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = ConvNorm(
            config.num_channels, config.embedding_size, kernel_size, stride, config.hidden_act
        )
        self.pool = nn.MaxPool2d(3, 2, 1) if config.stem == "imagenet" else nn.Identity()
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.depths)))
        self.norm = nn.Identity()
        if config.pre_activation:  # nobody has normalised the last sum
            self.norm = NormActivation(config.hidden_sizes[-1], config.hidden_act)
        self.post_init()

    @capture_outputs
    def forward(
        self, pixel_values: torch.FloatTensor, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Reads a batch of pictures.

        Args:
            pixel_values: (batch, num_channels, y, x), normalised as the image processor does it;
                any height and width.

        Returns:
            `last_hidden_state` (batch, channels, y', x'); `pooler_output` (batch, channels), its
            mean over the grid; where asked for, `hidden_states`: after the stem and each stage (the
            last of them after the final norm, where there is one).

        Raises:
            ValueError: the pictures have another number of channels.
        """
        check_pictures(pixel_values, self.config.num_channels)
        hidden_states = self.pool(self.stem(pixel_values.to(self.dtype)))
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states.mean((2, 3)),  # (batch, channels)
        )


class ResNetForImageClassification(ResNetPreTrainedModel):
    """ResNet with a score for each class; works with `pipeline("image-classification")`."""

    # The loss is a mean over the batch that was given; Trainer divides by what it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        self.resnet = ResNetModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """Scores the classes; arguments as in `ResNetModel.forward`, and:

        Args:
            labels: (batch,), the number of each picture's class; or (batch, num_labels), the
                probability of each class, as mixing pictures gives it.

        Returns:
            `loss`: mean of -log p(class), in nats, where labels were given; `logits` (batch,
            num_labels); `hidden_states` where asked for.
        """
        outputs = self.resnet(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        return ImageClassifierOutputWithNoAttention(
            loss=classification_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )


__all__ = ["PRESETS", "ResNetConfig", "ResNetForImageClassification", "ResNetModel"]
