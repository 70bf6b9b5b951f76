"""Runs of the picture classifiers: what they leave, how they are scored, when they are stopped.

The pictures are one colour a class, with noise: ten classes, learned in a few updates.
"""

import json
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import ModelCard
from PIL import Image as Pillow
from safetensors.torch import load_file
from test_recipe import LAUNCHERS, assert_refused, content, interrupted_at, launch
from transformers import pipeline

from groundup.data_scripts.images import Augment, ImageBatches
from groundup.train import cnn, machine, pictures, recipe, resnet

CLASSES = [f"colour {i}" for i in range(10)]
COLOURS = np.random.default_rng(0).integers(40, 216, (10, 3))
TINY = [
    "--max_steps=30",
    "--warmup_steps=0",
    "--bf16=false",
    "--per_device_train_batch_size=20",
    "--save_steps=8",  # in the midst of an epoch, whose easy pictures are skipped
    "--logging_steps=5",
    "--disable_tqdm=true",
]
SCRIPTS = {
    "cnn": (cnn, ["--hidden_sizes", "26", "32", "--skip_easy=0.3"]),
    "resnet": (resnet, ["--hidden_sizes", "8", "16", "--depths", "1", "1", "--embedding_size=8"]),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Parquet files as those of CIFAR-10, of 120 and 40 pictures."""
    folder = tmp_path_factory.mktemp("colours")
    draw = np.random.default_rng(1)
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    for split, count in (("train", 120), ("test", 40)):
        labels = [i % 10 for i in range(count)]
        pixels = COLOURS[labels][:, None, None] + draw.normal(0, 20, (count, 32, 32, 3))
        images = [Pillow.fromarray(p) for p in pixels.clip(0, 255).astype(np.uint8)]
        rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def flags(data_dir):
    """`flags(row, folder, *more)`: the flags of a tiny run into this folder."""

    def make(row, folder, *more):
        return [*TINY, *SCRIPTS[row][1], f"--data_dir={data_dir}", f"--output_dir={folder}", *more]

    return make


@pytest.fixture(scope="module", params=list(SCRIPTS))
def finished(request, flags, tmp_path_factory):
    """(row, folder) of a whole run. Only to be read."""
    folder = tmp_path_factory.mktemp(request.param)
    SCRIPTS[request.param][0].main(flags(request.param, folder))
    return request.param, folder


def test_a_run_leaves_what_it_should(finished):
    row, folder = finished
    run = json.loads((folder / "metrics.json").read_text())
    assert run["system"] == row and run["data"]["name"] == "cifar10"
    assert run["metrics"]["accuracy"] > 0.3  # chance is 0.1
    assert set(run["metrics"]) == {"accuracy", "accuracy_six_views"}
    for name in ("loss", "confusion", "mistakes"):
        assert Pillow.open(folder / "figures" / f"{name}.png").size[0] > 500
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.eval_results[0].dataset_split == "test"
    assert not list(folder.rglob("*.bin"))
    modes = {(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1  # who may read the one may read the other


def test_it_works_in_a_pipeline_with_the_names_of_the_classes(finished, data_dir):
    folder = finished[1]
    classify = pipeline("image-classification", str(folder))
    test = Dataset.from_parquet(str(data_dir / "test.parquet"))
    answers = [answer[0]["label"] for answer in classify(list(test["image"]))]
    right = sum(answer == CLASSES[i] for answer, i in zip(answers, test["label"], strict=True))
    run = json.loads((folder / "metrics.json").read_text())
    assert right / len(answers) == run["metrics"]["accuracy"]


def test_evaluate_only_gives_the_score_of_the_run(finished, flags, capsys):
    row, folder = finished
    before = json.loads((folder / "metrics.json").read_text())["metrics"]
    again = SCRIPTS[row][0].main(flags(row, folder, "--evaluate_only"))["metrics"]
    assert again == before
    said = capsys.readouterr().out
    plain, views = before.values()
    assert f"accuracy on test: {plain:.4f}, over six views {views:.4f}" in said
    assert "knows these pictures" not in said
    SCRIPTS[row][0].main(flags(row, folder, "--evaluate_only", "--hold_out=30"))
    assert "knows these pictures" in capsys.readouterr().out


def test_a_stopped_run_ends_with_the_same_bits(finished, flags, tmp_path, capsys):
    row, folder = finished
    with interrupted_at(15):
        SCRIPTS[row][0].main(flags(row, tmp_path))
    SCRIPTS[row][0].main(flags(row, tmp_path))
    assert f"resuming from {tmp_path / 'checkpoint-8'}" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_the_losses_that_choose_pictures_are_the_pictures_own(flags, tmp_path):
    """What the sampler was told last is what a loss per picture says."""
    told = []

    class Watched(pictures.PictureTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
            rows = self.hard.order[self.hard.position - len(inputs["labels"]) : self.hard.position]
            labels = self.train_dataset.labels[rows]
            told.append((loss.item(), self.hard.losses[rows].mean(), labels, inputs["labels"]))
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "PictureTrainer", Watched)
        cnn.main(flags("cnn", tmp_path / "run", "--label_smoothing=0"))
    assert len(told) == 30
    for loss, mean, labels, expected in told:
        assert mean == pytest.approx(loss, rel=1e-4)
        assert (labels == expected.numpy()).all()


def test_two_processes_tell_the_sampler_whose_losses_they_are(flags, tmp_path):
    """At a rate of 0 a picture's loss is, within its noise, that of its colour. Costs 15 s."""
    still = ["--learning_rate=0", "--muon_learning_rate=0", "--max_steps=4", "--save_steps=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    cnn.main(flags("cnn", one, *still))
    launcher = ["accelerate.commands.launch", "-q", "--config_file", str(LAUNCHERS / "ddp.yaml")]
    halves = [*still, "--per_device_train_batch_size=10", "--use_cpu=true"]
    told = launch(launcher, flags("cnn", two, *halves), two, tmp_path, script="cnn.py")
    assert [process["processes"] for process in told] == [2, 2]
    expected, found = (
        load_file(run / "checkpoint-4" / pictures.SAMPLER_FILE) for run in (one, two)
    )
    assert (found["order"] == expected["order"]).all()
    seen = expected["losses"].isfinite()
    assert seen.sum() == 80 and (found["losses"].isfinite() == seen).all()
    losses = torch.stack([expected["losses"], found["losses"]])[:, seen]
    assert torch.corrcoef(losses)[0, 1] > 0.9


def test_held_out_pictures_are_scored_and_the_test_pictures_left_alone(data_dir):
    arguments = pictures.PictureArguments(data_dir=str(data_dir), hold_out=30)
    data = pictures.load_pictures(arguments, seed=0)
    assert len(data.train) == 90 and len(data.scored) == 30
    assert data.scored.images is data.train.images
    assert not set(data.train.rows) & set(data.scored.rows)
    arguments = pictures.PictureArguments(data_dir=str(data_dir))
    data = pictures.load_pictures(arguments, seed=0)
    assert len(data.train) == 120 and len(data.scored) == 40 and data.split == "test"


def test_six_views_are_the_picture_its_neighbours_and_their_mirrors():
    pixels = torch.arange(16.0).reshape(1, 1, 4, 4)
    views = pictures.six_views(pixels)
    assert sum(weight for weight, _ in views) == 1
    assert torch.equal(views[0][1], pixels) and views[0][0] == 0.25
    assert torch.equal(views[1][1][..., 1:, 1:], pixels[..., :-1, :-1])
    assert torch.equal(views[2][1][..., :-1, :-1], pixels[..., 1:, 1:])
    for (weight, view), (mirrored_weight, mirrored) in zip(views[:3], views[3:], strict=True):
        assert weight == mirrored_weight and torch.equal(view.flip(-1), mirrored)


def test_scores_of_views_are_averaged():
    """Of a model that looks at one pixel."""

    class Corner(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, pixel_values):
            logits = torch.stack([pixel_values[:, 0, 0, 0], pixel_values[:, 0, -1, -1]], dim=1)
            return type("Output", (), {"logits": logits})

    images = np.random.default_rng(0).integers(0, 256, (7, 3, 6, 6), dtype=np.uint8)
    batches = ImageBatches(images, np.zeros(7, dtype=np.int64), Augment((0,) * 3, (1 / 255,) * 3))
    plain, averaged, labels = pictures.class_scores(Corner(), batches, batch_size=3)
    assert (plain == np.stack([images[:, 0, 0, 0], images[:, 0, -1, -1]], 1)).all()
    shifted = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    first = 0.25 * (images[:, 0, 0, 0] + 0.0 + images[:, 0, 0, -1])
    first += 0.125 * (shifted[:, 0, 0, 0] + 0.0 + shifted[:, 0, 0, 5])
    first += 0.125 * (shifted[:, 0, 2, 2] + 0.0 + shifted[:, 0, 2, 7])
    assert averaged[:, 0] == pytest.approx(first) and len(labels) == 7


def test_a_model_is_scored_again_in_the_precision_that_is_asked_for(flags, finished, monkeypatch):
    row, folder = finished
    in_bf16, score = [], pictures.score

    def spy(*args):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return score(*args)

    monkeypatch.setattr(pictures, "score", spy)
    monkeypatch.setattr(machine, "has_bf16_kernel", lambda device_type: True)
    for precision in ("true", "false"):
        SCRIPTS[row][0].main(flags(row, folder, "--evaluate_only", f"--bf16={precision}"))
    assert in_bf16 == [True, False]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--dataset=mnist"], ["cifar10 or cifar100"]),
        (["--hold_out=120"], ["cannot be held out"]),
        # Said before any data is looked for:
        (["--flip=sideways", "--data_dir=nowhere"], ["none, random, alternating"]),
        (["--label_smoothing=1.5", "--data_dir=nowhere"], ["label_smoothing is 1.5"]),
        (["--hidden_sizes", "0", "--data_dir=nowhere"], ["hidden_sizes is [0]"]),
        (["--data_dir=nowhere"], ["nowhere"]),
        (["--eval_strategy=steps"], ["would read the test pictures", "--hold_out 5000"]),
    ],
)
def test_a_mistake_is_one_line(capsys, flags, tmp_path, more, words):
    capsys.readouterr()
    assert_refused(capsys, flags("cnn", tmp_path, *more), *words, main=cnn.main)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--crop_padding=32"], ["32 x 32"]),
        (["--small_size=32", "--small_epochs=1"], ["cannot be made smaller to 32 x 32"]),
        (["--gradient_checkpointing=true"], ["leave out --gradient_checkpointing"]),
    ],
)
def test_a_mistake_costs_no_earlier_run(capsys, flags, finished, more, words):
    """Though what pictures allow is known only when they are there."""
    row, folder = finished
    before = content(folder)
    wrong = flags(row, folder, "--overwrite", *more)
    assert_refused(capsys, wrong, *words, main=SCRIPTS[row][0].main)
    assert content(folder) == before


def test_pictures_that_are_too_small_for_the_network_are_refused(capsys, flags, tmp_path):
    wrong = flags("cnn", tmp_path, "--small_size=4", "--small_epochs=9")
    assert_refused(capsys, wrong, "4 x 4 are too small", main=cnn.main)
    assert not content(tmp_path)


def test_the_mark_of_full_size_counts_the_short_update_of_an_epoch(flags, tmp_path, monkeypatch):
    """Four batches, three an update: two updates an epoch."""
    marked = []
    monkeypatch.setattr(pictures, "write_report", lambda *args: marked.append(args[6]))
    more = ["--small_size=24", "--small_epochs=1", "--gradient_accumulation_steps=3"]
    resnet.main(flags("resnet", tmp_path, *more, "--max_steps=3", "--save_steps=3"))
    assert marked == [2]


def test_the_first_layer_is_computed_from_pictures_of_every_part_of_the_data(monkeypatch):
    """Of 7 where 5 are asked for, too, for they may be sorted by class."""
    monkeypatch.setattr(cnn, "WHITENING_PICTURES", 5)
    seen = []
    data = Mock(labels=dict)
    data.train.rows, data.train.labels = np.arange(7), np.arange(7)
    data.train.images = np.zeros((7, 3, 8, 8), np.uint8)

    def augment(images, labels, rows):
        seen.extend(rows)
        return {"pixel_values": torch.zeros(len(rows), 3, 8, 8)}

    data.scored.augment = augment
    cnn.new_model(recipe.model_arguments(cnn.CNNConfig)(hidden_sizes=[26], whitening=True), data)
    assert seen == [0, 1, 2, 4, 5]


def test_a_folder_of_other_files_is_refused_before_data_is_looked_for(capsys, flags, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    wrong = flags("cnn", tmp_path, "--data_dir=nowhere", "--overwrite")
    assert_refused(capsys, wrong, "holds files that are no run", main=cnn.main)
    assert (tmp_path / "letters.txt").read_text() == "mine"
