"""Trains a CNN: a small convolutional network that classifies pictures.

    accelerate launch -q train/cnn.py                                 # CIFAR-10, configs/cnn.yaml
    accelerate launch -q train/cnn.py --hold_out 5000 --flip none --output_dir runs/no_flip
    accelerate launch -q train/cnn.py --evaluate_only                 # score the model in runs/cnn

The pictures are those of CIFAR-10 or CIFAR-100 (`--dataset`).
"""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, set_seed

from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.train import pictures, recipe, report
from groundup.train.publishing import publish

WHITENING_PICTURES = 5000
ModelArguments = recipe.model_arguments(CNNConfig)


def new_model(model_args, data: pictures.Pictures) -> CNNForImageClassification:
    """A model with random weights, but for the first layer, which is computed from pictures."""
    names = dict(enumerate(data.names))
    model = CNNForImageClassification(CNNConfig(**asdict(model_args), id2label=names))
    some = data.train.rows[:WHITENING_PICTURES]
    plain = data.scored.augment(data.train.images[some], data.train.labels[some], some)
    model.cnn.init_whitening(plain["pixel_values"])
    return model


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, picture_args, model_args, args = recipe.parse_arguments(
        argv, "cnn", pictures.PictureArguments, ModelArguments, description="Trains a CNN."
    )
    output_dir = Path(args.output_dir)
    recipe.check_scorable(args)
    set_seed(args.seed)

    # 2. Data
    data = pictures.load_pictures(picture_args, args.seed)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, data.description)
    else:
        settings = recipe.settings_of(args, picture_args, model_args, data=data.description)
        checkpoint = recipe.prepare_folder(args, settings)
    print(data)

    # 3. Model
    if args.evaluate_only:
        model = AutoModelForImageClassification.from_pretrained(output_dir, dtype=torch.float32)
    else:
        model = new_model(model_args, data)
    # Filters and pictures as the convolutions want them: half the time of the other order.
    model.to(memory_format=torch.channels_last)

    # 4. Fit
    trainer = pictures.make_trainer(model, args, data)
    if not args.evaluate_only:
        print(f"{model.num_parameters(only_trainable=True):,} parameters")
        trainer.train(checkpoint)
    model = trainer.whole_model()

    # 5. Report
    with trainer.autocast_smart_context_manager():
        metrics, logits, labels = pictures.score(model, data)
    seconds = trainer.stopwatch.seconds
    run = report.run_metrics("cnn", config_name, args, metrics, data.description, seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            about = (
                f"A convolutional network of {model.num_parameters():,} parameters: a computed "
                f"whitening layer and {len(model.config.hidden_sizes)} groups of "
                f"{model.config.depth} convolutions, {model.config.hidden_sizes} channels wide."
            )
            log = trainer.state.log_history
            pictures.write_report(output_dir, run, model, data, about, log, logits, labels)
        print(f"accuracy: {metrics['accuracy']:.4f} on {data.split}")
        if args.publish:
            publish(args)
    return run


if __name__ == "__main__":
    main()
