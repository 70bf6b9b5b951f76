"""Trains a CNN: a small convolutional network that classifies pictures.

    accelerate launch -q train/cnn.py                                 # CIFAR-10, configs/cnn.yaml
    accelerate launch -q train/cnn.py --hold_out 5000 --flip none --output_dir runs/no_flip
    accelerate launch -q train/cnn.py --evaluate_only                 # score the model in runs/cnn

The pictures are those of CIFAR-10 or CIFAR-100 (`--dataset`).
"""

from dataclasses import asdict

import numpy as np

from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.train import pictures, recipe

WHITENING_PICTURES = 5000


def new_model(model_args, data: pictures.Pictures) -> CNNForImageClassification:
    """A model with random weights; its first layer is computed from pictures, or random, too."""
    model = CNNForImageClassification(CNNConfig(**asdict(model_args), **data.labels()))
    if not model_args.whitening:
        return model
    rows = data.train.rows  # at equal distances, since they may be sorted by class
    count = min(len(rows), WHITENING_PICTURES)
    some = rows[np.arange(count) * len(rows) // count]
    plain = data.scored.augment(data.train.images[some], data.train.labels[some], some)
    model.cnn.init_whitening(plain["pixel_values"])
    return model


def describe_model(model) -> str:
    """What the card says of the network."""
    config = model.config
    first = "computed whitening" if config.whitening else "learned first"
    window = f"{config.pool_size} x {config.pool_size}"
    if config.pool_blur:
        side = config.pool_size - 1
        window += f" (in each, the mean of the maxima of its four windows of {side} x {side})"
    return (
        f"A convolutional network of {model.num_parameters():,} parameters: a {first} "
        f"layer and {len(config.hidden_sizes)} groups of {config.depth} convolutions, "
        f"{config.hidden_sizes} channels wide, each with pooling over windows of {window}."
    )


@recipe.one_line_errors
def main(argv=None):
    """A run, by the five steps of `pictures.run`. Returns what metrics.json holds."""
    return pictures.run(argv, "cnn", CNNConfig, new_model, describe_model)


if __name__ == "__main__":
    main()
