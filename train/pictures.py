"""What the picture classifiers share: their data, how they are scored, what their cards show."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import ConfusionMatrixDisplay
from transformers import AutoModelForImageClassification, ViTImageProcessor, set_seed

from groundup.data_scripts.cifar10 import load_cifar10
from groundup.data_scripts.cifar100 import load_cifar100
from groundup.data_scripts.images import (
    Augment,
    HardSampler,
    ImageBatches,
    held_out,
    image_arrays,
    mean_std,
    whole_batch,
)
from groundup.data_scripts.sources import describe
from groundup.train import recipe, report
from groundup.train.metrics import Accuracy
from groundup.train.publishing import publish

LOADERS = {"cifar10": load_cifar10, "cifar100": load_cifar100}
SCORE = "accuracy"
SAMPLER_FILE = "sampler.safetensors"
USAGE = """from transformers import pipeline

classify = pipeline("image-classification", "path/to/this/folder", trust_remote_code=True)
print(classify("picture.jpg", top_k=5))"""


@dataclass
class PictureArguments:
    """The pictures, and what is done to them on their way to the network."""

    dataset: str = field(default="cifar10", metadata={"help": "cifar10 or cifar100."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds train.parquet and test.parquet."}
    )
    hold_out: int = field(
        default=0,
        metadata={
            "help": "Training pictures to score on, to choose settings by. 0: train on all of "
            "them, and score on the test pictures."
        },
    )
    flip: str = field(default="none", metadata={"help": "none, random or alternating."})
    crop_padding: int = field(
        default=0, metadata={"help": "Shift pictures by up to so many pixels."}
    )
    cutout_size: int = field(default=0, metadata={"help": "Blank out a square of this side."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Mix pictures in pairs."})
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of a label's probability that goes to all classes."}
    )
    small_size: int = field(
        default=0, metadata={"help": "Begin with pictures made smaller, to this side in pixels."}
    )
    small_epochs: int = field(
        default=0, metadata={"help": "For how many epochs pictures are of small_size."}
    )
    skip_easy: float = field(
        default=0.0,
        metadata={
            "help": "Share of the pictures that an epoch leaves out: those of the smallest loss "
            "when they were seen last. None is left out twice in a row."
        },
    )

    def __post_init__(self):
        if self.dataset not in LOADERS:
            raise ValueError(f"--dataset {self.dataset} is unknown: give {' or '.join(LOADERS)}")
        if not 0 <= self.skip_easy <= 0.5:
            raise ValueError(f"--skip_easy is {self.skip_easy}; give a share from 0 to 0.5")
        if self.skip_easy and self.mixup_alpha:
            raise ValueError("--skip_easy needs each picture's own loss: leave out --mixup_alpha")
        self.augment([0.5], [0.5], num_classes=2, seed=0)  # refuses what cannot be, before any data

    def augment(self, mean, std, num_classes: int, seed: int) -> Augment:
        """What is done to pictures to train on; arguments as of `Augment`."""
        return Augment(
            mean,
            std,
            flip=self.flip,
            crop_padding=self.crop_padding,
            cutout_size=self.cutout_size,
            mixup_alpha=self.mixup_alpha,
            label_smoothing=self.label_smoothing,
            small_size=self.small_size,
            small_epochs=self.small_epochs,
            num_classes=num_classes,
            channels_last=True,
            seed=seed,
        )


@dataclass
class Pictures:
    """Data, ready for a run.

    Args:
        train: batches with augmentation.
        scored: batches without, of other pictures.
        names: of the classes.
        processor: what a pipeline does to a picture before the model.
        description: what `describe` says of the data.
        split: which pictures are scored.
    """

    train: ImageBatches
    scored: ImageBatches
    names: list[str]
    processor: ViTImageProcessor
    description: dict[str, str]
    split: str

    def labels(self) -> dict[str, dict]:
        """The classes as a config has them."""
        id2label = dict(enumerate(self.names))
        return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}

    def __str__(self):
        return (
            f"{self.description['source']}: {len(self.train):,} pictures to train on, "
            f"{len(self.scored):,} to score ({self.split}); {len(self.names)} classes"
        )


def load_pictures(
    arguments: PictureArguments, seed: int, processor: ViTImageProcessor | None = None
) -> Pictures:
    """The data set that is asked for, decoded and split.

    Args:
        processor: of a trained model, which says how it wants its pictures; made from the training
            pictures where None.
    """
    dataset = LOADERS[arguments.dataset](arguments.data_dir)
    names = dataset["train"].features["label"].names
    images, labels = image_arrays(dataset["train"])
    height, width = images.shape[2:]
    if processor is None:
        mean, std = mean_std(images)
        processor = ViTImageProcessor(
            size={"height": height, "width": width},
            image_mean=mean.tolist(),
            image_std=std.tolist(),
            do_convert_rgb=True,
        )
    mean, std = processor.image_mean, processor.image_std
    if arguments.cutout_size >= min(height, width):
        raise ValueError(
            f"--cutout_size {arguments.cutout_size} blanks out pictures of {width} x {height} "
            f"whole: give less"
        )
    augment = arguments.augment(mean, std, len(names), seed)
    plain = Augment(mean, std, channels_last=True)
    if arguments.hold_out:
        kept, held = held_out(labels, arguments.hold_out)
        train = ImageBatches(images, labels, augment, kept)
        scored = ImageBatches(images, labels, plain, held)
    else:
        train = ImageBatches(images, labels, augment)
        scored = ImageBatches(*image_arrays(dataset["test"]), plain)
    split = f"{arguments.hold_out} held-out pictures" if arguments.hold_out else "test"
    return Pictures(train, scored, names, processor, describe(dataset), split)


class PictureTrainer(recipe.RunTrainer):
    """A Trainer for pictures, which reports accuracy.

    Args:
        model, args: as for Trainer.
        pictures: to train and to score on.
        skip_easy: share of the pictures that an epoch leaves out, see `HardSampler`; what that
            knows is part of a checkpoint.

    Raises:
        ValueError: the model has other classes than the data, or labels would be smoothed twice.
    """

    def __init__(self, model, args, pictures: Pictures, skip_easy: float = 0.0):
        if list(model.config.id2label.values()) != pictures.names:
            raise ValueError(
                f"the model tells {model.config.num_labels} classes apart that are not those of "
                f"{pictures.description['name']}: set --dataset to what it was trained on"
            )
        if args.label_smoothing_factor:
            raise ValueError(
                "use --label_smoothing, which goes with mixup, not label_smoothing_factor"
            )
        metric = Accuracy()
        super().__init__(
            model,
            args,
            train_dataset=pictures.train,
            eval_dataset=pictures.scored,
            data_collator=whole_batch,
            processing_class=pictures.processor,
            compute_metrics=lambda out: metric.compute(
                predictions=out.predictions.argmax(-1), references=out.label_ids
            ),
        )
        seed = args.seed if args.data_seed is None else args.data_seed
        self.hard = None
        if skip_easy:
            self.hard = HardSampler(pictures.train, seed, skip_easy)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.hard is None else self.hard

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Trainer's own; the sampler is told the loss of each picture."""
        if self.hard is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        logits = outputs["logits"].detach().float()
        losses = torch.nn.functional.cross_entropy(logits, inputs["labels"], reduction="none")
        # Processes take turns with the batches, and their losses are gathered in that order.
        self.hard.record(self.accelerator.gather(losses).cpu().numpy())
        return (loss, outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs):
        """Trains, from a checkpoint with what its sampler knew or from the start."""
        try_pictures(self.model, self.train_dataset)
        if self.hard is not None and resume_from_checkpoint is not None:
            self.hard.load_state_dict(load_file(Path(resume_from_checkpoint) / SAMPLER_FILE))
        return super().train(resume_from_checkpoint, **kwargs)

    def _save_rng_state(self, output_dir):
        # Called before the checkpoint is sealed.
        super()._save_rng_state(output_dir)
        if self.hard is not None and self.args.should_save:
            save_file(self.hard.state_dict(), Path(output_dir) / SAMPLER_FILE)


@torch.no_grad()
def try_pictures(model, batches: ImageBatches) -> None:
    """Shows the network a picture of the first epoch and one of full size, to train nothing.

    So shifts, sizes and networks that do not go with these pictures are refused before a run
    begins, which may replace an earlier one.
    """
    was_training = model.training
    model.eval()
    for epoch in {0, batches.augment.small_epochs}:
        [batch] = batches.__getitems__([(epoch, 0)])
        model(batch["pixel_values"].to(model.device))
    model.train(was_training)


# ---------------------------------------------------------------------------------------- scoring


def six_views(pixel_values: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """A picture, and the same shifted by a pixel to both ends of a diagonal, each also mirrored.

    Args:
        pixel_values: (batch, channels, height, width).

    Returns:
        Pairs of weight and (batch, channels, height, width), the picture itself first; it and its
        mirror have half the weight.
    """
    height, width = pixel_values.shape[2:]
    padded = torch.nn.functional.pad(pixel_values, (1, 1, 1, 1), mode="reflect")
    shifted = (padded[:, :, :height, :width], padded[:, :, 2:, 2:])
    views = [(0.25, pixel_values), *((0.125, view) for view in shifted)]
    return views + [(weight, view.flip(-1)) for weight, view in views]


@torch.no_grad()
def class_scores(model, batches: ImageBatches, batch_size: int):
    """The model's scores of each picture, their mean over `six_views`, and the true classes.

    Returns:
        (n, num_labels), (n, num_labels), the weighted mean (test-time augmentation), and (n,).
    """
    was_training = model.training
    model.eval()
    loader = torch.utils.data.DataLoader(batches, batch_size, collate_fn=whole_batch)
    plain, averaged, labels = [], [], []
    for batch in loader:
        weights, views = zip(*six_views(batch["pixel_values"].to(model.device)), strict=True)
        logits = [model(view).logits.float().cpu() for view in views]
        plain.append(logits[0])
        averaged.append(sum(weight * one for weight, one in zip(weights, logits, strict=True)))
        labels.append(batch["labels"])
    model.train(was_training)
    return tuple(torch.cat(parts).numpy() for parts in (plain, averaged, labels))


def score(
    model, pictures: Pictures, batch_size: int
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Accuracy, plain and over six views; and the plain scores and true classes."""
    metric = Accuracy()
    plain, averaged, labels = class_scores(model, pictures.scored, batch_size)
    metrics = metric.compute(predictions=plain.argmax(-1), references=labels)
    of_views = metric.compute(predictions=averaged.argmax(-1), references=labels)
    return metrics | {f"{SCORE}_six_views": of_views[SCORE]}, plain, labels


# ------------------------------------------------------------------------------------ the card


def plot_confusion(path: Path, logits: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """How often each class is taken for each other, in percent of the true class."""
    import matplotlib
    import matplotlib.pyplot as plt

    few = len(names) <= 20
    side = 7 if few else 0.16 * len(names)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        labels,
        logits.argmax(-1),
        labels=range(len(names)),
        normalize="true",
        display_labels=names,
        include_values=few,
        values_format=".0%",
        xticks_rotation="vertical",
        # Mistakes are rare: a scale on which they show beside what is right.
        im_kw={"cmap": "Blues", "norm": matplotlib.colors.PowerNorm(0.4, 0, 1)},
        colorbar=False,
        ax=axes,
    )
    for text in display.text_.flat if few else ():
        if text.get_text() == "0%":
            text.set_text("")
    axes.set(xlabel="taken for", ylabel="is")
    axes.tick_params(labelsize=10 if few else 6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_mistakes(
    path: Path, batches: ImageBatches, logits: np.ndarray, labels: np.ndarray, names: list[str]
) -> None:
    """The sixteen pictures of whose wrong class the model is surest."""
    import matplotlib.pyplot as plt

    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    guess, sure = probabilities.argmax(-1), probabilities.max(-1)
    mistakes = np.flatnonzero(guess != labels)
    worst = mistakes[np.argsort(-sure[mistakes])][:16]
    figure, grid = plt.subplots(2, 8, figsize=(12, 3.8), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, worst, strict=False):  # there may be fewer mistakes
        axes.imshow(batches.images[batches.rows[i]].transpose(1, 2, 0), interpolation="nearest")
        axes.set_title(
            f"{names[guess[i]]} {min(sure[i], 0.999):.1%}\nis {names[labels[i]]}",
            fontsize=9,
            loc="left",
        )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(
    output_dir: Path,
    run: dict,
    model,
    pictures: Pictures,
    about: str,
    log: list,
    full_size_from: int,
    logits,
    labels,
) -> None:
    """The model folder: weights, code, processor, figures, card, and last metrics.json.

    Args:
        about: what the network is, for the card.
        log: Trainer's.
        full_size_from: the update from which on pictures were not made smaller; 0 from the first.
        logits, labels: of the pictures that were scored, as `score` gives them.
    """
    report.save_model(model, pictures.processor, output_dir)
    figures = output_dir / "figures"
    report.plot_loss(
        log,
        figures / "loss.png",
        {"loss": "training", "eval_loss": pictures.split},
        marks={full_size_from: "pictures of full size from here"} if full_size_from else None,
    )
    plot_confusion(figures / "confusion.png", logits, labels, pictures.names)
    plot_mistakes(figures / "mistakes.png", pictures.scored, logits, labels, pictures.names)
    name, size = run["data"]["name"], pictures.processor.size
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: pictures to classes",
        pipeline_tag="image-classification",
        task_name="Image classification",
        split=pictures.split,
        scores={
            SCORE: f"Accuracy on {name}, {pictures.split}",
            f"{SCORE}_six_views": "the same, scores averaged over six views",
        },
        scored_on={f"{SCORE}_six_views": {"metric_type": SCORE}},
        usage=USAGE,
        license="apache-2.0",
        datasets=[f"uoft-cs/{name}"],
        tags=["image-classification"],
        sections={
            "": f"{about} It tells {len(pictures.names)} classes apart: "
            f"{', '.join(pictures.names)}.",
            "Training": "![loss](figures/loss.png)\n\nThe training loss is that of augmented "
            "pictures with smoothed labels, where the config has them, and without the pictures "
            "that were skipped as easy. The six views of a picture are itself, and itself shifted "
            "by a pixel up and left and by one down and right, each also mirrored.",
            "Errors": "Each row is a true class, each column what it was taken for:\n\n"
            "![confusion](figures/confusion.png)\n\nThe mistakes that the model was surest of:\n\n"
            "![mistakes](figures/mistakes.png)",
            "What it is not good for": f"It has seen photographs of {size['width']} x "
            f"{size['height']} pixels and these classes only: the pipeline squeezes any picture, "
            "whatever its shape, into that, and calls it one of them. (The Space cuts the middle "
            "square out first.) Its probabilities are not calibrated. The data was scraped from "
            "the web in 2008 and has that time's blind spots; its makers offer it for research.",
        },
    )
    report.finish(output_dir, run)


# ------------------------------------------------------------------------------------- the run


def run(argv, row: str, config_class, new_model, describe_model) -> dict:
    """Arguments, data, model, fit, report: a run of any picture classifier.

    Args:
        argv: flags, or None for those of the command line.
        row: name of the system and of its default config.
        config_class: of the models that it makes; its settings are flags.
        new_model: (model arguments, `Pictures`) -> a model to train.
        describe_model: model -> what the card says that it is.

    Returns:
        What metrics.json holds.
    """
    # 1. Arguments
    config_name, picture_args, model_args, args = recipe.parse_arguments(
        argv,
        row,
        PictureArguments,
        recipe.model_arguments(config_class, leave_out=["num_channels"]),  # 3, those of RGB
        description="Trains a picture classifier.",
    )
    output_dir = Path(args.output_dir)
    recipe.check_folder(args, config_class)
    config_class(**asdict(model_args))  # a shape that cannot be is refused before data is read
    if args.eval_strategy != "no" and not picture_args.hold_out:
        raise ValueError(
            "evaluations in training (--eval_strategy, --eval_steps) would read the test pictures: "
            "give --hold_out 5000, too"
        )
    set_seed(args.seed)

    # 2. Data
    processor = None
    if args.evaluate_only:
        processor = ViTImageProcessor.from_pretrained(output_dir)
    with args.main_process_first(local=True):  # which decodes the pictures, once
        pictures = load_pictures(picture_args, args.seed, processor)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, pictures.description)
        if picture_args.hold_out:
            print("note: a model trained without --hold_out, or with another, knows these pictures")
    else:
        settings = recipe.settings_of(args, picture_args, model_args, data=pictures.description)
        checkpoint = recipe.prepare_folder(args, settings)
    if args.process_index == 0:
        print(pictures)

    # 3. Model
    if args.evaluate_only:
        model = AutoModelForImageClassification.from_pretrained(output_dir, dtype=torch.float32)
    else:
        model = new_model(model_args, pictures)
    # Filters in the order of memory in which the pictures come, which convolutions want.
    model.to(memory_format=torch.channels_last)

    # 4. Fit
    trainer = PictureTrainer(model, args, pictures, picture_args.skip_easy)
    if not args.evaluate_only:
        print(f"{model.num_parameters(only_trainable=True):,} parameters to train")
        trainer.train(checkpoint)
    model = trainer.whole_model()

    # 5. Report
    with trainer.accelerator.autocast():
        metrics, logits, labels = score(model, pictures, args.per_device_eval_batch_size)
    seconds = trainer.stopwatch.seconds
    result = report.run_metrics(row, config_name, args, metrics, pictures.description, seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            about, log = describe_model(model), trainer.state.log_history
            batches = len(trainer.get_train_dataloader())  # of an epoch, whose last update is short
            updates = math.ceil(batches / args.gradient_accumulation_steps)
            full_size = picture_args.small_epochs * updates
            if full_size >= trainer.state.max_steps:
                print(f"all pictures were of {picture_args.small_size} pixels: no full size")
                full_size = 0
            write_report(output_dir, result, model, pictures, about, log, full_size, logits, labels)
        views = metrics[f"{SCORE}_six_views"]
        print(f"accuracy on {pictures.split}: {metrics[SCORE]:.4f}, over six views {views:.4f}")
        if args.publish:
            publish(args)
    return result
