"""The weights of torchvision's and transformers' ResNets into ours.

    model = resnet_from_torchvision(torchvision.models.resnet50(weights="DEFAULT"))
    model = resnet_from_transformers("microsoft/resnet-50")   # a Hub id, a folder, or the model

They compute the same: the same outputs, the same gradients, to 1e-5 in fp32 (the tests compare
them). This file is not saved with a checkpoint; the model does not need it. A pipeline needs the
reference's image processor beside the model: save it into the same folder.
"""

import os
import re

import torch
from torch import nn
from transformers import ResNetConfig as TheirConfig
from transformers import ResNetForImageClassification as TheirResNet

from .resnet import ResNetConfig, ResNetForImageClassification

# Ours: torchvision's, transformers'. {i} is a stage, {j} its block, {k} the block's convolution,
# each counted from 0; {I} and {K} are the same from 1.
THEIR_BLOCK = "resnet.encoder.stages.{i}.layers.{j}"
NAMES = {
    "resnet.stem.conv": ("conv1", "resnet.embedder.embedder.convolution"),
    "resnet.stem.norm": ("bn1", "resnet.embedder.embedder.normalization"),
    "resnet.stages.#.blocks.#.branch.#.conv": (
        "layer{I}.{j}.conv{K}",
        THEIR_BLOCK + ".layer.{k}.convolution",
    ),
    "resnet.stages.#.blocks.#.branch.#.norm": (
        "layer{I}.{j}.bn{K}",
        THEIR_BLOCK + ".layer.{k}.normalization",
    ),
    "resnet.stages.#.blocks.#.shortcut.conv": (
        "layer{I}.{j}.downsample.0",
        THEIR_BLOCK + ".shortcut.convolution",
    ),
    "resnet.stages.#.blocks.#.shortcut.norm": (
        "layer{I}.{j}.downsample.1",
        THEIR_BLOCK + ".shortcut.normalization",
    ),
    "classifier": ("fc", "classifier.1"),
}
LIBRARIES = ("torchvision", "transformers")


def resnet_from_torchvision(reference: nn.Module) -> ResNetForImageClassification:
    """A ResNet with the weights of a torchvision `ResNet`, in the same dtype and mode.

    Also of one whose stem was changed for CIFAR: `conv1` 3x3 with stride 1, `maxpool` an Identity.

    Raises:
        ValueError: the reference has an option that our ResNet does not have (ResNeXt's groups,
            wide bottlenecks, dilation, another norm).
    """
    return _convert("torchvision", reference, config_from_torchvision(reference))


def resnet_from_transformers(
    reference: TheirResNet | str | os.PathLike,
) -> ResNetForImageClassification:
    """A ResNet with the weights of transformers' `ResNetForImageClassification`, and its labels.

    Args:
        reference: the model, or where `from_pretrained` finds it; safetensors only.

    Raises:
        ValueError: the reference has an option that our ResNet does not have, or is another model.
    """
    if not isinstance(reference, TheirResNet):
        where = reference
        reference, loading = TheirResNet.from_pretrained(
            where, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"{where} is no ResNetForImageClassification of transformers: it lacks "
                f"{missing[0]} and {len(missing) - 1} more weights"
            )
    return _convert("transformers", reference, config_from_transformers(reference.config))


def _convert(library: str, reference: nn.Module, config: ResNetConfig):
    model = ResNetForImageClassification(config)
    model.load_state_dict(tensors_from(library, reference.state_dict(), model.state_dict()))
    dtype = next(reference.parameters()).dtype
    return model.to(dtype).train(reference.training)


def config_from_torchvision(reference: nn.Module) -> ResNetConfig:
    """The ResNetConfig that computes the same; ValueError where none does."""
    from torchvision.models.resnet import Bottleneck, ResNet  # here: transformers' needs it not

    if not isinstance(reference, ResNet):
        raise ValueError(f"this is a {type(reference).__name__}, not torchvision's ResNet")
    wanted = {"groups": 1, "base_width": 64, "dilation": 1, "_norm_layer": nn.BatchNorm2d}
    for name, value in wanted.items():
        if (found := getattr(reference, name)) != value:
            raise ValueError(
                f"this ResNet has {name}={found}, which ours cannot do; only one with "
                f"{name}={value} can be taken over"
            )
    mean, head = reference.avgpool, reference.fc
    if not isinstance(mean, nn.AdaptiveAvgPool2d) or mean.output_size not in (1, (1, 1)):
        raise ValueError(
            f"this ResNet ends with {type(mean).__name__}; ours ends with the mean over the grid"
        )
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"this ResNet scores by a {type(head).__name__}; ours does by one linear layer"
        )
    stages = [reference.layer1, reference.layer2, reference.layer3, reference.layer4]
    bottleneck = isinstance(stages[0][0], Bottleneck)
    last = "conv3" if bottleneck else "conv2"
    return ResNetConfig(
        num_channels=reference.conv1.in_channels,
        stem=_stem_of(reference),
        embedding_size=reference.conv1.out_channels,
        hidden_sizes=[getattr(stage[-1], last).out_channels for stage in stages],
        depths=[len(stage) for stage in stages],
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=reference.fc.out_features,
    )


def _stem_of(reference: nn.Module) -> str:
    """Which of our stems a torchvision ResNet has."""
    conv, pool = reference.conv1, reference.maxpool
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    pools = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    pooled = [getattr(pool, name, None) for name in pools]
    if shape == ((7, 7), (2, 2), (3, 3), (1, 1)) and pooled == [3, 2, 1, 1, False]:
        return "imagenet"
    if shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and isinstance(pool, nn.Identity):
        return "cifar"
    raise ValueError(
        f"this ResNet begins with {conv} and {pool}; ours begins with 7x7, stride 2 and "
        f"max-pooling, or with 3x3, stride 1 and none"
    )


def config_from_transformers(reference: TheirConfig) -> ResNetConfig:
    """The ResNetConfig that computes the same; ValueError where none does."""
    if reference.hidden_act != "relu":
        # Its blocks take hidden_act after the sum only, and relu inside, whatever it says.
        raise ValueError(
            f"this ResNet has hidden_act={reference.hidden_act!r}, which ours does not mix with "
            f"relu; only one with hidden_act='relu' can be taken over"
        )
    same = ("num_channels", "embedding_size", "hidden_sizes", "depths", "layer_type")
    of_the_head = ("id2label", "label2id", "problem_type")  # which ResNetConfig may refuse
    bottleneck = reference.layer_type == "bottleneck"  # a basic block passes the next option over
    return ResNetConfig(
        **{name: getattr(reference, name) for name in (*same, *of_the_head)},
        downsample_in_first_stage=reference.downsample_in_first_stage,
        downsample_in_bottleneck=reference.downsample_in_bottleneck and bottleneck,
    )


def tensors_from(library: str, tensors: dict, names) -> dict[str, torch.Tensor]:
    """A library's tensors under our names: weights and statistics, or gradients.

    Args:
        library: "torchvision" or "transformers".
        tensors: under its names.
        names: ours, of what is wanted.

    Raises:
        ValueError: there are more or fewer tensors than names.
    """
    theirs = {name: their_name(library, name) for name in names}
    if odd := theirs.values() ^ tensors.keys():
        raise ValueError(f"this is not {library}'s ResNet as it was: {', '.join(sorted(odd))}")
    return {name: tensors[their] for name, their in theirs.items()}


def their_name(library: str, ours: str) -> str:
    """What a library calls one of our tensors."""
    module, _, end = ours.rpartition(".")
    numbers = [int(number) for number in re.findall(r"\d+", module)]
    counted = dict(zip("ijk", numbers, strict=False))
    counted |= dict(zip("IJK", (number + 1 for number in numbers), strict=False))
    theirs = NAMES[re.sub(r"\d+", "#", module)][LIBRARIES.index(library)]
    return f"{theirs.format(**counted)}.{end}"
