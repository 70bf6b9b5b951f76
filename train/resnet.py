"""Trains a ResNet that classifies pictures.

    accelerate launch -q train/resnet.py                               # ResNet-20 on CIFAR-10
    accelerate launch -q train/resnet.py --config configs/resnet_56.yaml   # for a GPU
    accelerate launch -q train/resnet.py --shortcut none --output_dir runs/plain   # no shortcuts
    accelerate launch -q train/resnet.py --evaluate_only               # score runs/resnet

The pictures are those of CIFAR-10 or CIFAR-100 (`--dataset`).
"""

from dataclasses import asdict

from groundup.models.resnet import ResNetConfig, ResNetForImageClassification
from groundup.train import pictures, recipe


def new_model(model_args, data: pictures.Pictures) -> ResNetForImageClassification:
    """A model with random weights."""
    return ResNetForImageClassification(ResNetConfig(**asdict(model_args), **data.labels()))


def describe_model(model) -> str:
    """What the card says of the network."""
    config = model.config
    kind = (
        "A plain network, without shortcuts," if config.shortcut == "none" else "A residual network"
    )
    layers = 2 + sum(config.depths) * (3 if config.layer_type == "bottleneck" else 2)
    order = "before" if config.pre_activation else "after"
    return (
        f"{kind} of {layers} layers and {model.num_parameters():,} parameters: {config.depths} "
        f"{config.layer_type} blocks in stages of {config.hidden_sizes} channels, norm and "
        f"activation {order} each convolution."
    )


@recipe.one_line_errors
def main(argv=None):
    """A run, by the five steps of `pictures.run`. Returns what metrics.json holds."""
    return pictures.run(argv, "resnet", ResNetConfig, new_model, describe_model)


if __name__ == "__main__":
    main()
