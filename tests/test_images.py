"""Pictures: the CIFAR scripts, the cache, augmentation against plain loops, batches."""

import io
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import accelerate.data_loader
import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from groundup.data_scripts import cifar10, cifar100
from groundup.data_scripts import images as module
from groundup.data_scripts.images import (
    Augment,
    EpochSampler,
    HardSampler,
    ImageBatches,
    coin,
    crop_images,
    cut_out,
    flip_images,
    held_out,
    image_arrays,
    mean_std,
    mix_up,
    whole_batch,
)
from groundup.data_scripts.sources import DataNotFound, describe
from groundup.train import recipe

DATA = os.environ.get("GROUNDUP_DATA")
needs_cifar10 = pytest.mark.skipif(
    not (DATA and Path(DATA, "cifar10", "train.parquet").is_file()),
    reason="needs $GROUNDUP_DATA/cifar10/train.parquet",
)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# An Augment that leaves bytes as they are.
BYTES = {"mean": (0, 0, 0), "std": (1 / 255, 1 / 255, 1 / 255)}


def noise(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    shape = (n, 3, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray | Image.Image, **options) -> bytes:
    """A file of (3, height, width) or of a picture of Pillow's."""
    file = io.BytesIO()
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels.transpose(1, 2, 0))
    pixels.save(file, "png", **options)
    return file.getvalue()


def split_of(files: list[bytes], classes: int = 10, **names: str) -> Dataset:
    """A split of these files, whose labels go round."""
    image, label = names.get("image", "image"), names.get("label", "label")
    features = Features(
        {image: datasets.Image(), label: ClassLabel(names=[f"c{i}" for i in range(classes)])}
    )
    rows = {
        image: [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)],
        label: [i % classes for i in range(len(files))],
    }
    return Dataset.from_dict(rows, features=features)


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder of `datasets`; where its pictures go."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "groundup"


# CIFAR


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


LOADERS = pytest.mark.parametrize(
    ("script", "load", "classes"),
    [(cifar10, cifar10.load_cifar10, 10), (cifar100, cifar100.load_cifar100, 100)],
)


@LOADERS
def test_cifar_from_a_folder(tmp_path, script, load, classes, caplog, capsys, monkeypatch):
    pixels = noise(4)
    for n, file in ((4, "train.parquet"), (2, "test.parquet")):
        split_of([png(p) for p in pixels[:n]], classes).to_parquet(tmp_path / file)
    dataset = load(tmp_path)
    assert [(name, rows.num_rows) for name, rows in dataset.items()] == [("train", 4), ("test", 2)]
    assert dataset["train"].column_names == ["image", "label"]
    assert dataset["train"].features["label"].int2str(3) == "c3"
    assert (np.asarray(dataset["train"][3]["image"]).transpose(2, 0, 1) == pixels[3]).all()
    known = describe(dataset)
    assert known["name"] == script.NAME
    assert known["source"] == "local files train.parquet, test.parquet"
    assert "none stated" in known["license"]
    assert "4 pictures instead of 50000" in caplog.text
    monkeypatch.setattr("sys.argv", ["cifar.py", "--data_dir", str(tmp_path)])
    cifar10.show(load, "")
    shown = capsys.readouterr().out
    assert "train: 4 pictures" in shown and str(tmp_path) not in shown
    assert re.search(rf"{classes - 1} c{classes - 1} +\d", shown)


def test_cifar_from_the_hub(hub, no_folder):
    """The real client and the Hub's own names of files and columns."""
    api = huggingface_hub.HfApi()
    for hub_id, folder, classes, label in (
        ("uoft-cs/cifar10", "plain_text", 10, "label"),
        ("uoft-cs/cifar100", "cifar100", 100, "fine_label"),
    ):
        api.create_repo(hub_id, repo_type="dataset", exist_ok=True)
        for split in ("train", "test"):
            file = io.BytesIO()
            rows = split_of([png(p) for p in noise(3)], classes, image="img", label=label)
            rows.add_column("coarse_label", [0, 1, 2]).to_parquet(file)
            path = f"{folder}/{split}-00000-of-00001.parquet"
            api.upload_file(
                path_or_fileobj=file.getvalue(),
                path_in_repo=path,
                repo_id=hub_id,
                repo_type="dataset",
            )
    for load in (cifar10.load_cifar10, cifar100.load_cifar100):
        dataset = load()
        assert dataset["test"].column_names == ["image", "label", "coarse_label"]
        assert dataset["train"]["label"][:] == [0, 1, 2]
        assert describe(dataset)["source"].startswith("Hub uoft-cs/cifar10")


@LOADERS
def test_cifar_found_nowhere_names_the_ways(no_folder, monkeypatch, script, load, classes):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataNotFound) as error:
        load()
    for way in ("--data_dir", f"$GROUNDUP_DATA/{script.NAME}", f"Hub ({script.HUB_ID})"):
        assert way in one_line(error)


def test_files_that_are_not_cifar(tmp_path):
    good = split_of([png(p) for p in noise(2)])
    good.to_parquet(tmp_path / "test.parquet")
    whole = (tmp_path / "test.parquet").read_bytes()
    without_names = good.cast_column("label", Value("int64"))
    for content, complaint in (
        (whole[:-50], "cannot be read"),
        (b"", "cannot be read"),
        (without_names, "ClassLabel"),
        (good.remove_columns("image"), "it has label"),
        (split_of([png(p) for p in noise(2)], classes=100), "100 classes instead of 10"),
    ):
        if isinstance(content, bytes):
            (tmp_path / "train.parquet").write_bytes(content)
        else:
            content.to_parquet(tmp_path / "train.parquet")
        with pytest.raises(ValueError) as error:
            cifar10.load_cifar10(tmp_path)
        assert complaint in one_line(error) and "train.parquet" in one_line(error)


@needs_cifar10
def test_cifar10_itself():
    """The test split only: decoding all takes half a minute."""
    rows = cifar10._read_split(Path(DATA, "cifar10", "test.parquet"), "test", 10)
    assert rows.features["label"].names[3] == "cat"
    assert set(Counter(rows["label"]).values()) == {1000}
    images = module._decode_all(
        rows.select(range(1000)).cast_column("image", datasets.Image(decode=False))
    )
    assert images.shape == (1000, 3, 32, 32)
    mean, std = mean_std(images)  # the published ones of all, nearly
    assert np.allclose(mean, (0.491, 0.482, 0.447), atol=0.02)
    assert np.allclose(std, (0.247, 0.243, 0.262), atol=0.02)


# Decoding


def test_pictures_are_decoded_once(cache, monkeypatch):
    pixels = noise(12, 5, 7)
    split = split_of([png(p) for p in pixels])
    first, labels = image_arrays(split)
    assert isinstance(first, np.memmap) and not first.flags.writeable
    assert first.dtype == np.uint8 and (first == pixels).all()
    assert labels.dtype == np.int64 and labels.tolist() == [*range(10), 0, 1]
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    monkeypatch.setattr(module, "_decode_all", lambda _: pytest.fail("decoded again"))
    again, _ = image_arrays(split_of([png(p) for p in pixels]))
    assert (again == pixels).all()


def test_other_pictures_have_another_cache(cache):
    pixels = noise(4, 5, 7)
    split = split_of([png(p) for p in pixels])
    image_arrays(split)
    images, labels = image_arrays(split.select([3, 1]))
    assert (images == pixels[[3, 1]]).all() and labels.tolist() == [3, 1]


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty"])
def test_a_damaged_cache_is_made_anew(cache, caplog, damage):
    pixels = noise(4, 5, 7)
    split = split_of([png(p) for p in pixels])
    image_arrays(split)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    broken = {"cut": whole[:-9], "flipped bit": whole[:-9] + b"?" + whole[-8:], "empty": b""}
    path.write_bytes(broken[damage])
    images, _ = image_arrays(split)
    assert (images == pixels).all() and "is damaged" in caplog.text
    assert path.read_bytes() == whole and list(cache.iterdir()) == [path]


def test_without_a_cache_pictures_stay_in_memory(cache, caplog, monkeypatch):
    pixels = noise(2, 5, 7)
    split = split_of([png(p) for p in pixels])

    def full(file, array):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    images, _ = image_arrays(split)
    assert (images == pixels).all() and "stay in memory" in caplog.text
    assert not list(cache.iterdir())  # nothing half-written
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert (image_arrays(split)[0] == pixels).all()


def test_other_kinds_of_pictures_become_rgb(cache):
    pixels = noise(1, 6, 6)[0]
    rgb = Image.fromarray(pixels.transpose(1, 2, 0))
    grey = rgb.convert("L")
    palette = rgb.quantize(8)
    clear = rgb.convert("RGBA")
    clear.putpixel((2, 1), (9, 9, 9, 0))
    images, _ = image_arrays(split_of([png(image) for image in (rgb, grey, palette, clear)]))
    assert (images[0] == pixels).all()
    assert (images[1] == np.asarray(grey)).all()
    assert (images[2] == np.asarray(palette.convert("RGB")).transpose(2, 0, 1)).all()
    pixels[:, 1, 2] = 255
    assert (images[3] == pixels).all()


def bad_pictures():
    image = Image.fromarray(noise(1)[0].transpose(1, 2, 0))
    good = png(image)
    deep = Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16))
    frames = [image, image.rotate(90)]
    yield "corrupt", good[:200] + b"?" * 20 + good[220:], "cannot be read"
    yield "cut", good[: len(good) // 2], "cannot be read"
    yield "no picture", b"text", "cannot be read"
    yield "empty", b"", "cannot be read"
    yield "animated", png(frames[0], save_all=True, append_images=frames[1:]), "2 frames"
    yield "16 bits", png(deep), "I;16"
    yield "odd size", png(image.resize((30, 32))), "30 x 32 pixels and the first one 32 x 32"
    yield "path only", None, "only a path"


@pytest.mark.parametrize(
    ("file", "complaint"), [pytest.param(*rest, id=name) for name, *rest in bad_pictures()]
)
def test_bad_pictures_are_told_in_one_line(cache, file, complaint):
    with pytest.raises(ValueError) as error:
        image_arrays(split_of([png(noise(1)[0]), file]))
    assert complaint in one_line(error) and "picture 1" in one_line(error)
    assert not cache.exists()


def test_splits_that_are_no_pictures():
    good = split_of([png(p) for p in noise(2)])
    unlabelled = good.remove_columns("label").add_column("label", [0, None])
    for split, complaint in (
        (good.remove_columns("label"), "there are: image"),
        (good.cast_column("image", datasets.Image(decode=False)).select([]), "no pictures"),
        (Dataset.from_dict({"image": ["a"], "label": [0]}), "of pictures"),
        (unlabelled, "whole numbers"),
        (good.remove_columns("label").add_column("label", ["a", "b"]), "whole numbers"),
        (good.remove_columns("label").add_column("label", [0, -1]), "whole numbers"),
    ):
        with pytest.raises(ValueError) as error:
            image_arrays(split)
        assert complaint in one_line(error)


def test_mean_and_deviation():
    images = noise(2100, 4, 4) // np.array([1, 2, 3], dtype=np.uint8)[:, None, None]
    mean, std = mean_std(images)
    assert np.allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-9)


def test_held_out_rows():
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % 10)
    kept, held = held_out(labels)
    assert np.array_equal(np.sort(np.concatenate((kept, held))), np.arange(50_000))
    assert np.bincount(labels[held]).tolist() == [500] * 10
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    assert np.array_equal(held, held_out(labels)[1])
    assert not np.array_equal(held, held_out(labels, seed=1)[1])
    # Not the first rows of each class.
    assert 20_000 < held.mean() < 30_000
    uneven = np.repeat([0, 1, 2], [10, 70, 20])
    assert np.abs(np.bincount(uneven[held_out(uneven, 33)[1]]) - [3.3, 23.1, 6.6]).max() <= 1
    for n in (0, 100, -1):
        with pytest.raises(ValueError) as error:
            held_out(uneven, n)
        assert "held out" in one_line(error)


# Augmentation, against loops that do it picture by picture, pixel by pixel


def test_flip():
    images, flipped = noise(9, 5, 6), np.arange(9) % 3 == 0
    before = images.copy()
    result = flip_images(images, flipped)
    for i in range(9):
        expected = [[row[::-1] for row in channel] for channel in before[i].tolist()]
        assert result[i].tolist() == (expected if flipped[i] else before[i].tolist())
    assert (images == before).all()


def reflected(position: int, size: int) -> int:
    if position < 0:
        return -position
    return 2 * (size - 1) - position if position >= size else position


@pytest.mark.parametrize(("height", "width", "padding"), [(5, 7, 4), (32, 32, 2)])
def test_crop(height, width, padding):
    shifts = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    images = noise(len(shifts), height, width)
    top, left = np.array(shifts).T
    result = crop_images(images, top, left, padding)
    assert result.shape == images.shape and result.dtype == np.uint8
    assert result.flags.c_contiguous  # which is how the network gets it
    for i, (y, x) in enumerate(shifts):
        rows = [reflected(r + y - padding, height) for r in range(height)]
        columns = [reflected(c + x - padding, width) for c in range(width)]
        assert (
            result[i] == [[[image[r, c] for c in columns] for r in rows] for image in images[i]]
        ).all()
    with pytest.raises(ValueError) as error:
        crop_images(images, top, left, min(height, width))
    assert "less than" in one_line(error)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout(size):
    height, width = 9, 11
    centres = [(r, c) for r in range(height) for c in range(width)]
    row, column = np.array(centres).T
    result = cut_out(torch.ones(len(centres), 3, height, width), row, column, size)
    for i, (r, c) in enumerate(centres):
        top, left = r - size // 2, c - size // 2
        expected = [
            [not (top <= y < top + size and left <= x < left + size) for x in range(width)]
            for y in range(height)
        ]
        assert (result[i] == torch.tensor(expected)).all()
    area = (result[:, 0] == 0).sum((1, 2))
    assert area.max() == size**2 and area.min() == ((size + 1) // 2) ** 2


def test_mixup():
    pixels, labels = torch.rand(5, 3, 4, 4), torch.tensor([2, 0, 1, 2, 0])
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    mixed, soft = mix_up(pixels, 0.7), mix_up(one_hot, 0.7)
    for i in range(5):
        assert torch.allclose(mixed[i], 0.7 * pixels[i] + 0.3 * pixels[i - 1])
        expected = torch.zeros(3)
        expected[labels[i]] += 0.7
        expected[labels[i - 1]] += 0.3
        assert torch.allclose(soft[i], expected)
    # With probabilities, cross-entropy is the mixture of the two: what the paper minimises.
    logits = torch.randn(5, 3)
    loss = torch.nn.functional.cross_entropy
    expected = 0.7 * loss(logits, labels) + 0.3 * loss(logits, labels.roll(1))
    assert torch.allclose(loss(logits, soft), expected)


def test_label_smoothing():
    """As `F.cross_entropy` has it."""
    images, labels = noise(4), np.array([2, 0, 1, 1])
    batch = Augment(**HALF, label_smoothing=0.2, num_classes=3)(images, labels, np.arange(4))
    logits = torch.randn(4, 3)
    loss = torch.nn.functional.cross_entropy
    expected = loss(logits, torch.from_numpy(labels), label_smoothing=0.2)
    assert torch.allclose(loss(logits, batch["labels"]), expected)


def test_mixup_shares_are_beta():
    images, labels = noise(2, 2, 2), np.array([0, 1])
    augment = Augment(**HALF, mixup_alpha=0.4, num_classes=2)
    shares = np.array(
        [augment(images, labels, np.array([row, 0]))["labels"][0, 0] for row in range(1500)]
    )
    assert abs(shares.mean() - 0.5) < 0.04
    assert abs(shares.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.012  # of Beta(a, a)


def test_normalisation_alone():
    images, labels = noise(6), np.arange(6)
    mean, std = np.array([0.49, 0.48, 0.45]), np.array([0.25, 0.24, 0.26])
    batch = Augment(mean, std)(images, labels, labels)
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    assert batch["pixel_values"].dtype == torch.float32 and batch["labels"].tolist() == [*range(6)]
    assert np.abs(batch["pixel_values"].numpy() - expected).max() < 1e-5
    assert batch["pixel_values"].is_contiguous()
    last = Augment(mean, std, channels_last=True)(images, labels, labels)["pixel_values"]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, batch["pixel_values"])


def test_all_at_once_is_one_after_the_other():
    """Every picture of an augmented batch is some flip and shift of its original, less a square."""
    images, rows = noise(40, 8, 8), np.arange(40)
    augment = Augment(**BYTES, flip="random", crop_padding=2, cutout_size=3)
    result = augment(images, rows, rows)["pixel_values"].round().numpy()
    shifts = np.array([(y, x) for y in range(5) for x in range(5)])
    seen = set()
    for image, augmented in zip(images, result, strict=True):
        candidates = [
            (flip, tuple(shift))
            for flip in (False, True)
            for shift, shown in zip(
                shifts,
                crop_images(
                    flip_images(np.repeat(image[None], 25, 0), np.full(25, flip)), *shifts.T, 2
                ),
                strict=True,
            )
            if 0 < (shown != augmented).any(0).sum() <= 9
            and (augmented[shown != augmented] == 0).all()
        ]
        assert len(candidates) == 1
        seen |= set(candidates)
    assert len(seen) > 20  # each picture is drawn for by itself


def test_pictures_are_small_in_the_first_epochs():
    """As Pillow makes them small, to the rounding of a byte."""
    images, rows = noise(5), np.arange(5)
    augment = Augment(**BYTES, small_size=20, small_epochs=2)
    small = augment(images, rows, rows, 1)["pixel_values"].numpy()
    for image, shrunk in zip(images, small, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        expected = np.asarray(picture.resize((20, 20), Image.Resampling.BILINEAR))
        assert np.abs(shrunk.transpose(1, 2, 0) - expected).max() <= 1
    assert (augment(images, rows, rows, 2)["pixel_values"].numpy() == images).all()


@pytest.mark.parametrize(
    "option",
    [
        {"flip": "random"},
        {"crop_padding": 4},
        {"cutout_size": 8},
        {"mixup_alpha": 0.3, "num_classes": 8},
    ],
)
def test_draws_depend_on_seed_epoch_and_rows_alone(option):
    images, rows = noise(8), np.arange(8)

    def drawn(seed=0, epoch=0, first=0):
        augment = Augment(**HALF, **option, seed=seed)
        return augment(images, rows, rows + first, epoch)["pixel_values"]

    once = drawn()
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(once, drawn())
    for other in (drawn(seed=1), drawn(epoch=1), drawn(first=1)):
        assert not torch.equal(once, other)


def test_alternating_flips():
    images, labels = noise(1000, 2, 2), np.zeros(1000, dtype=np.int64)
    augment = Augment(**BYTES, flip="alternating", seed=3)
    rows = np.random.default_rng(0).permutation(1000)

    def flipped(order, epoch):
        result = augment(images[order], labels, order, epoch)["pixel_values"].numpy()
        is_flipped = np.empty(1000, dtype=bool)
        is_flipped[order] = (result != images[order]).any((1, 2, 3))
        return is_flipped

    first = flipped(rows, 0)
    assert 420 < first.sum() < 580
    assert (flipped(rows[::-1], 1) == ~first).all()  # in any batch, at any place
    assert (flipped(rows, 2) == first).all()
    assert 420 < (coin(3, rows) != coin(4, rows)).sum() < 580
    neighbours = coin(3, np.arange(10_000))
    assert abs((neighbours[1:] == neighbours[:-1]).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"flip": "sometimes"}, "none, random, alternating"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"small_size": 16}, "go together"),
        ({"small_size": 32, "small_epochs": 1}, "cannot be made smaller to 32 x 32"),
        ({"mixup_alpha": 0.2}, "num_classes"),
        ({"label_smoothing": 0.2}, "num_classes"),
        ({"label_smoothing": 1.0, "num_classes": 3}, "in [0, 1)"),
        ({"std": (1, 1, 0)}, "std above 0"),
        ({"std": (1, 1)}, "per channel"),
        ({"mean": (0,), "std": (1,)}, "3 channels"),
    ],
)
def test_wrong_options(options, complaint):
    with pytest.raises(ValueError) as error:
        Augment(**(HALF | options))(noise(1), np.zeros(1), np.zeros(1))
    assert complaint in one_line(error)


# Batches


def test_an_epoch_leaves_out_the_rows_of_smallest_loss():
    dataset = ImageBatches(noise(20), np.arange(20), Augment(**BYTES))
    sampler = HardSampler(dataset, seed=1, skipped=0.25)
    everything, before = set(range(20)), None
    for epoch in range(4):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        rows = [row for _, row, _ in pairs]
        assert {e for e, _, _ in pairs} == {epoch} and len(set(rows)) == len(rows) == len(
            sampler
        ) == 15
        if before is not None:  # row i has the loss i: of those that were there, 5 are left out
            assert everything - set(rows) == set(sorted(before)[:5])
        assert rows != sorted(rows)
        before = rows
        sampler.record(np.array(rows[:10], dtype=np.float32))
        resumed = HardSampler(dataset, seed=1, skipped=0.25)
        state = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
        resumed.load_state_dict(state)
        assert list(resumed) == pairs  # within an epoch, the same order again
        for one in (sampler, resumed):  # two processes have filled up their last batch
            one.record(np.array([*rows[10:], 99, 99], dtype=np.float32))
        dataset.set_epoch(epoch + 1)
        assert list(resumed) == list(sampler)


def test_rows_that_an_epoch_did_not_come_to_are_in_the_next_one():
    """A loader that drops its last batch leaves some out, whatever their loss was before."""
    dataset = ImageBatches(noise(20), np.arange(20), Augment(**BYTES))
    sampler = HardSampler(dataset, seed=1, skipped=0.25)
    list(sampler)
    sampler.record(np.zeros(15, dtype=np.float32))
    dataset.set_epoch(1)
    second = list(sampler)
    sampler.record(np.ones(10, dtype=np.float32))
    dataset.set_epoch(2)
    third = {row: before for _, row, before in sampler}
    for _, row, before in second[10:]:
        assert third[row] == before  # it was not shown then


def test_a_picture_that_is_skipped_every_second_time_is_still_mirrored_every_second_time():
    images = noise(20, 4, 4)
    dataset = ImageBatches(images, np.arange(20), Augment(**BYTES, flip="alternating", seed=3))
    sampler = HardSampler(dataset, seed=1, skipped=0.25)
    seen = {row: [] for row in range(20)}
    for epoch in range(8):
        dataset.set_epoch(epoch)
        indices = list(sampler)
        (batch,) = dataset.__getitems__(indices)
        for row, pixels in zip(batch["labels"].tolist(), batch["pixel_values"], strict=True):
            seen[row].append(bool((pixels.numpy().round() == images[row]).all()))
        sampler.record(np.array([row for _, row, _ in indices], dtype=np.float32))
    assert min(len(times) for times in seen.values()) == 4  # the easiest: every second epoch
    for times in seen.values():
        assert all(a != b for a, b in itertools.pairwise(times))


def test_what_was_left_out_is_spread_over_the_next_epoch():
    """Batches of pictures that are all easy or all hard would spoil the norms' running averages."""
    dataset = ImageBatches(noise(2000, 2, 2), np.arange(2000), Augment(**BYTES))
    sampler = HardSampler(dataset, seed=1, skipped=0.25)
    seen = set(range(2000))
    for epoch in range(4):
        dataset.set_epoch(epoch)
        rows = [row for _, row, _ in sampler]
        sampler.record(np.array(rows, dtype=np.float32))
        if epoch:
            returns = np.array([row not in seen for row in rows])
            assert returns.sum() == 500
            for part in np.split(returns, 3):
                assert abs(part.mean() - 1 / 3) < 0.08
        seen = set(rows)


def test_batches_of_a_loader():
    images, labels = noise(50, 4, 4), np.arange(50)
    rows = np.arange(5, 50, 2)
    dataset = ImageBatches(images, labels, Augment(**BYTES), rows)
    loader = DataLoader(
        dataset, 8, sampler=EpochSampler(dataset), collate_fn=whole_batch, num_workers=0
    )
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 7]
    seen = torch.cat([batch["labels"] for batch in batches])
    assert sorted(seen.tolist()) == rows.tolist() and seen.tolist() != rows.tolist()
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    assert (pixels.numpy().round() == images[seen]).all()
    assert torch.equal(dataset[3]["pixel_values"], torch.from_numpy(images[11]).float())
    assert len(list(DataLoader(dataset, 8, collate_fn=whole_batch))) == 3  # in order: evaluation
    assert [int(item["labels"]) for item in dataset] == rows.tolist()
    with pytest.raises(IndexError):
        dataset[23]
    for wrong in ((images, labels[:-1], Augment(**BYTES)), (images, labels, Augment(**BYTES), [])):
        with pytest.raises(ValueError) as error:
            ImageBatches(*wrong)
        one_line(error)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("skipped", [0, 1])
def test_every_process_knows_the_epoch(processes, skipped):
    """As Trainer asks Accelerate for it, from the start and resumed inside an epoch."""
    rows_of = {}
    for epoch in (0, 3):
        seen = []
        for process in range(processes):
            dataset = ImageBatches(noise(24, 2, 2), np.arange(24), Told())
            loader = accelerate.data_loader.prepare_data_loader(
                DataLoader(
                    dataset, 3, sampler=EpochSampler(dataset, seed=1), collate_fn=whole_batch
                ),
                num_processes=processes,
                process_index=process,
                use_seedable_sampler=True,
                rng_types=[],
            )
            if skipped:
                loader = accelerate.data_loader.skip_first_batches(loader, skipped)
            loader.set_epoch(epoch)
            batches = list(loader)
            assert {batch["epoch"] for batch in batches} == {epoch}
            seen += [row for batch in batches for row in batch["rows"].tolist()]
        assert len(seen) == len(set(seen)) == 24 - 3 * skipped * processes
        rows_of[epoch] = seen
    assert rows_of[0] != rows_of[3]


class Told:
    """In the place of an Augment: what it was told."""

    def __call__(self, images, labels, rows, epoch):
        return {"rows": torch.from_numpy(rows), "epoch": epoch}


class TinyConfig(PreTrainedConfig):
    model_type = "tiny-classifier"


class TinyClassifier(PreTrainedModel):
    """Linear: enough to show in its weights what it was fed."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.fed = []
        self.head = torch.nn.Linear(48, 3)
        self.post_init()

    def forward(self, pixel_values, labels=None):
        self.fed.append((pixel_values, labels))
        logits = self.head(pixel_values.flatten(1))
        return ImageClassifierOutput(torch.nn.functional.cross_entropy(logits, labels), logits)


def test_a_resumed_run_sees_the_same_pictures(tmp_path):
    """Stopped inside its second epoch, of four batches, a run goes on to the same bits."""
    mixed = Augment(
        **HALF,
        flip="alternating",
        crop_padding=1,
        cutout_size=2,
        mixup_alpha=0.3,
        num_classes=3,
    )

    def run(folder, max_steps, checkpoint=None):
        torch.manual_seed(0)
        args = recipe.RunArguments(
            output_dir=str(tmp_path / folder),
            max_steps=max_steps,
            save_steps=6,
            lr_scheduler_type="constant",
            per_device_train_batch_size=5,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        images, labels = noise(18, 4, 4), np.arange(18) % 3
        trainer = recipe.RunTrainer(
            TinyClassifier(TinyConfig()),
            args,
            train_dataset=ImageBatches(images, labels, mixed),
            eval_dataset=ImageBatches(images, labels, Augment(**HALF)),
            data_collator=whole_batch,
        )
        trainer.train(checkpoint)
        fed = trainer.model.fed
        trainer.model.fed = []
        trainer.evaluate()  # normalised only, with the labels as they are
        assert torch.cat([labels for _, labels in trainer.model.fed]).tolist() == labels.tolist()
        return fed, trainer.model.head.weight

    straight, weight = run("straight", 11)
    assert len(straight) == 11 and not any(
        torch.equal(straight[0][0][0], later[0][0]) for later, _ in straight[1:]
    )
    run("stopped", 6)
    resumed, resumed_weight = run("stopped", 11, tmp_path / "stopped" / "checkpoint-6")
    assert len(resumed) == 5
    for (pixels, labels), (same_pixels, same_labels) in zip(straight[6:], resumed, strict=True):
        assert torch.equal(pixels, same_pixels) and torch.equal(labels, same_labels)
    assert torch.equal(weight, resumed_weight)
