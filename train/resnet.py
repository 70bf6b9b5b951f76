"""Trains a ResNet that classifies pictures.

    accelerate launch -q train/resnet.py                               # ResNet-20 on CIFAR-10
    accelerate launch -q train/resnet.py --depths 9 9 9 --output_dir runs/resnet_56
    accelerate launch -q train/resnet.py --shortcut none --output_dir runs/plain   # no shortcuts
    accelerate launch -q train/resnet.py --evaluate_only               # score runs/resnet

The pictures are those of CIFAR-10 or CIFAR-100 (`--dataset`).
"""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, set_seed

from groundup.models.resnet import ResNetConfig, ResNetForImageClassification
from groundup.train import pictures, recipe, report
from groundup.train.publishing import publish

ModelArguments = recipe.model_arguments(ResNetConfig)


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, picture_args, model_args, args = recipe.parse_arguments(
        argv, "resnet", pictures.PictureArguments, ModelArguments, description="Trains a ResNet."
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
        names = dict(enumerate(data.names))
        model = ResNetForImageClassification(ResNetConfig(**asdict(model_args), id2label=names))
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
    run = report.run_metrics("resnet", config_name, args, metrics, data.description, seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            config = model.config
            shortcuts = "no shortcuts" if config.shortcut == "none" else "residual shortcuts"
            about = (
                f"A residual network of {model.num_parameters():,} parameters: {config.depths} "
                f"{config.layer_type} blocks in stages of {config.hidden_sizes} channels, with "
                f"{shortcuts}."
            )
            log = trainer.state.log_history
            pictures.write_report(output_dir, run, model, data, about, log, logits, labels)
        print(f"accuracy: {metrics['accuracy']:.4f} on {data.split}")
        if args.publish:
            publish(args)
    return run


if __name__ == "__main__":
    main()
