"""Pictures to batches: decoded once, then augmented a whole batch at a time.

    images, labels = image_arrays(dataset["train"])          # uint8, memory-mapped from a cache
    kept, held = held_out(labels)                            # validation data
    mean, std = mean_std(images)
    train = ImageBatches(images, labels, Augment(mean, std, flip="random", crop_padding=4), kept)
    loader = DataLoader(train, 500, sampler=EpochSampler(train), collate_fn=whole_batch)

**Every draw is a function of (seed, epoch, first row of the batch)**, not of a generator that goes
on from batch to batch. A loader fetches a batch ahead of the training step, and a resumed run
fetches two before Trainer restores the state of torch's generator: draws from that generator would
not come out again. These do, in any process, and on loaders with workers too.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm

from groundup.data_scripts.sources import fingerprint

logger = logging.getLogger(__name__)

FLIPS = ("none", "random", "alternating")
# What converts to RGB without a loss that one would see. Not 16 or 32 bits: Pillow clips those.
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
ORDER, AUGMENTATION = 1, 2  # last part of a seed: what is drawn with it

# --------------------------------------------------------------------------- pictures to an array


def image_arrays(split: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of a split as one array, which is decoded once and then kept on disk.

    The array lies in the cache folder of `datasets` (`HF_DATASETS_CACHE`), under the fingerprint of
    the pictures and a checksum of its own. A damaged one is made anew; where none can be written,
    the pictures stay in memory, with a warning.

    Args:
        split: with the columns `image` (all of one size) and `label`.

    Returns:
        The pictures, (n, 3, height, width), uint8, RGB, read-only if memory-mapped; and their
        labels, (n,), int64.

    Raises:
        ValueError: a column is missing or of another kind, or a picture cannot be read, moves, is
            deeper than 8 bits or has another size than the first.
    """
    labels = _labels(split)
    pictures = split.select_columns("image").cast_column("image", datasets.Image(decode=False))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "groundup"
    key = fingerprint(DatasetDict(images=pictures))
    images = _read_cached(folder, key)
    if images is None:
        images = _write_cached(folder, key, _decode_all(pictures))
    return images, labels


def _labels(split: Dataset) -> np.ndarray:
    if not isinstance(split.features.get("image"), datasets.Image) or "label" not in split.features:
        raise ValueError(
            f"the columns image (of pictures) and label are needed; there are: "
            f"{', '.join(split.column_names)}"
        )
    if not split.num_rows:
        raise ValueError("the split has no pictures")
    labels = np.asarray(split["label"][:])
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError("the column label must hold whole numbers from 0, one for each picture")
    return labels.astype(np.int64)


def _decode_all(pictures: Dataset) -> np.ndarray:
    """(n, 3, height, width) of the pictures' bytes."""
    images = None
    rows = (row for rows in pictures.iter(1000) for row in rows["image"])
    bar = tqdm(rows, "decoding the pictures, once", pictures.num_rows, leave=False)
    for i, picture in enumerate(bar):
        pixels = _decode(picture, i)
        if images is None:
            images = np.empty((pictures.num_rows, *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            (_, height, width), (_, first_height, first_width) = pixels.shape, images.shape[1:]
            raise ValueError(
                f"picture {i} is {width} x {height} pixels and the first one {first_width} x "
                f"{first_height}: resize them to one size first"
            )
        images[i] = pixels
    return images


def _decode(picture: dict | None, i: int) -> np.ndarray:
    """One picture as (3, height, width), uint8, RGB; what is transparent shows white."""
    if picture is None or picture["bytes"] is None:
        raise ValueError(
            f"picture {i} is missing or only a path: write the data set to Parquet, which takes "
            f"the files in"
        )
    try:
        image = datasets.Image().decode_example(picture)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"picture {i} cannot be read: {error}") from error
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"picture {i} moves: it has {image.n_frames} frames instead of one")
    if image.mode not in CONVERTIBLE:
        raise ValueError(f"picture {i} is of the kind {image.mode}: convert it to 8-bit RGB first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _read_cached(folder: Path, key: str) -> np.ndarray | None:
    """The array of this key, memory-mapped; None if there is none, or none whose checksum holds."""
    for path in folder.glob(f"{key}-*.npy"):
        try:
            if _cache_name(key, path) == path.name:
                return np.load(path, mmap_mode="r", allow_pickle=False)
            reason = "another checksum"
        except (OSError, ValueError) as error:
            reason = str(error)
        logger.warning("%s is damaged (%s): decoding the pictures anew", path, reason)
    return None


def _cache_name(key: str, path: Path) -> str:
    """What a file of this content is called."""
    return f"{key}-{zlib.crc32(np.memmap(path, mode='r')):08x}.npy"


def _write_cached(folder: Path, key: str, images: np.ndarray) -> np.ndarray:
    """The same array memory-mapped from a file that appears whole; itself if none can be written.

    It is written from memory rather than decoded into a memory map: there, a full disk would not be
    an error but kill the process.
    """
    staging = folder / f".{key}-{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            np.save(file, images)
            file.flush()
            os.fsync(file.fileno())
        path = folder / _cache_name(key, staging)
        staging.replace(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        logger.warning("the decoded pictures stay in memory: %s holds no more (%s)", folder, error)
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is left over
            staging.unlink(missing_ok=True)
        return images


def mean_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, with 1 for the brightest value.

    They are counted, not kept as constants, so that they fit any data set; and counted in whole
    numbers, so that they are exact and the same on every machine.

    Args:
        images: (n, channels, height, width), uint8.

    Returns:
        Two arrays of (channels,), float64.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), 1000):
        for channel, total in enumerate(counts):
            total += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    return mean, np.sqrt(shares @ values**2 - mean**2)


def held_out(labels: np.ndarray, n: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and `n` rows to choose settings by: the same ones in every run.

    Sorted by class, and at random within each, rows are held out at even distances: so a class has
    the share in them that it has in all, up to one row.

    Args:
        labels: (rows,) of the training split.
        n: how many to hold out.
        seed: another one holds other rows out.

    Returns:
        (rows - n,) and (n,), int64, each in rising order.

    Raises:
        ValueError: nothing would be held out, or nothing left.
    """
    rows = len(labels)
    if not 0 < n < rows:
        raise ValueError(f"{n} of {rows} pictures cannot be held out: give 1 to {rows - 1}")
    by_class = np.lexsort((np.random.default_rng(seed).random(rows), labels))
    is_held = np.zeros(rows, dtype=bool)
    is_held[by_class[(np.arange(n) * rows + rows // 2) // n]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


# ------------------------------------------------------------------------------------ augmentation


def flip_images(images: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """The pictures with those mirrored, left to right, for which `flipped` (b,) is True."""
    images = images.copy()
    images[flipped] = images[flipped][..., ::-1]
    return images


def crop_images(images: np.ndarray, top: np.ndarray, left: np.ndarray, padding: int) -> np.ndarray:
    """Cut a window of the old size out of each picture, `padding` pixels larger on each side.

    What is added at the sides mirrors what is inside (reflection without the edge itself).

    Args:
        images: (b, channels, height, width).
        top: (b,), from 0 to 2 * padding: where in the larger picture the window begins.
        left: (b,), likewise.
        padding: pixels on each side, less than height and width.
    """
    height, width = images.shape[2:]
    if padding >= min(height, width):
        raise ValueError(
            f"pictures of {width} x {height} cannot be reflected {padding} pixels far: the padding "
            f"of the crop must be less than their size"
        )
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images, sides, mode="reflect")
    # Every window there is, as a view: (b, channels, 2 * padding + 1, 2 * padding + 1, height,
    # width). One look-up takes each picture's own.
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(len(images)), :, top, left]


def cut_out(pixels: torch.Tensor, row: np.ndarray, column: np.ndarray, size: int) -> torch.Tensor:
    """Put 0, the mean, into a square of each picture (DeVries and Taylor, 2017), in place.

    As in the paper, the centre may be any pixel: at the border, part of the square is outside.

    Args:
        pixels: (b, channels, height, width), normalised.
        row: (b,), from 0 to height - 1: the centre (of an even size: the pixel after it).
        column: (b,), from 0 to width - 1.
        size: the side, in pixels.
    """
    height, width = pixels.shape[2:]

    def inside(centre: np.ndarray, length: int) -> torch.Tensor:  # (b, length)
        from_start = np.arange(length) - (centre[:, None] - size // 2)
        return torch.from_numpy((from_start >= 0) & (from_start < size))

    square = inside(row, height)[:, None, :, None] & inside(column, width)[:, None, None, :]
    return pixels.masked_fill_(square, 0)


def mix_up(values: torch.Tensor, share: float) -> torch.Tensor:
    """Lay each example over the one before it in the batch (Zhang et al., "mixup", 2018).

        x = share * x_i + (1 - share) * x_(i-1)

    for pictures, and likewise for their labels, which must be probabilities by then:
    `F.cross_entropy` takes them as they are, so a model need not know of it. The paper takes a
    random partner; the batch is shuffled, so the one before is random.
    """
    return torch.lerp(values.roll(1, 0), values, share)


def coin(seed: int, rows: np.ndarray) -> np.ndarray:
    """One bit (b,) for each row, the same in every batch (splitmix64, Steele et al., 2014)."""
    x = rows.astype(np.uint64) + np.full_like(rows, seed, dtype=np.uint64) * np.uint64(2**32)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(63)).astype(np.int64)


def shrink(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(b, channels, height, width) -> (b, channels, size, size); each pixel is a weighted mean.

    Raises:
        ValueError: the pictures are not larger.
    """
    height, width = pixels.shape[2:]
    if size >= min(height, width):
        raise ValueError(
            f"pictures of {width} x {height} cannot be made smaller to {size} x {size}"
        )
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Augment:
    """What is done to a batch of pictures on its way to the network.

    With mean and standard deviation only, it normalises: that is what evaluation wants.

    Args:
        mean: of each channel, with 1 for the brightest value.
        std: likewise.
        flip: "none"; "random", each picture mirrored in half of its epochs; or "alternating", each
            every second time that it is shown, at random from the first or the second time on
            (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024): twice shows both sides of a picture.
        crop_padding: shift by up to so many pixels each way; 0 does not.
        cutout_size: side of the square that is blanked out, in pixels; 0 does not.
        mixup_alpha: mix pairs of pictures with shares from Beta(alpha, alpha), one per batch; 0
            does not.
        label_smoothing: share of a label's probability that is dealt out to all classes alike
            (Szegedy et al. 2016).
        small_size: side, in pixels, to which pictures are made smaller in the first epochs: what is
            learned first is coarse, and half the pixels are half the work (progressive resizing,
            Howard 2018); 0 does not.
        small_epochs: how many epochs these are.
        num_classes: for mixup and smoothing, whose labels are probabilities.
        channels_last: memory in the order (b, height, width, channels); the shape stays.
        seed: of every draw.

    Raises:
        ValueError: an option that cannot be.
    """

    mean: Sequence[float]
    std: Sequence[float]
    flip: str = "none"
    crop_padding: int = 0
    cutout_size: int = 0
    mixup_alpha: float = 0.0
    label_smoothing: float = 0.0
    small_size: int = 0
    small_epochs: int = 0
    num_classes: int | None = None
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self):
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"mean ({self.mean}) and std ({self.std}) need one value per channel, std above 0"
            )
        if self.flip not in FLIPS:
            raise ValueError(f"flip is {self.flip!r}; there are: {', '.join(FLIPS)}")
        counts = ("crop_padding", "cutout_size", "small_size", "small_epochs", "seed")
        for name in (*counts, "mixup_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if bool(self.small_size) != bool(self.small_epochs):
            raise ValueError("small_size and small_epochs go together: give both or neither")
        for name in ("mixup_alpha", "label_smoothing"):
            if getattr(self, name) and not self.num_classes:
                raise ValueError(f"{name} needs num_classes, for labels that are probabilities")

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        epoch: int = 0,
        turns: np.ndarray | None = None,
    ) -> dict[str, torch.Tensor]:
        """A batch for a model.

        Args:
            images: (b, channels, height, width), uint8.
            labels: (b,), int64.
            rows: (b,), where the pictures stand in the data set: with the epoch, they decide what
                is drawn.
            epoch: from 0.
            turns: (b,), how often each picture was shown before; `epoch` times where None.

        Returns:
            `pixel_values`, (b, channels, height, width), float32, and `labels`, (b,), int64, or
            with mixup or smoothing (b, num_classes), float32.
        """
        b, channels, height, width = images.shape
        if channels != len(self.mean):
            raise ValueError(f"pictures of {channels} channels, but a mean of {len(self.mean)}")
        draw = np.random.default_rng([self.seed, epoch, int(rows[0]), AUGMENTATION])
        if self.flip == "random":
            images = flip_images(images, draw.random(b) < 0.5)
        elif self.flip == "alternating":
            turns = epoch if turns is None else turns
            images = flip_images(images, (coin(self.seed, rows) + turns) % 2 == 1)
        if self.crop_padding:
            top, left = draw.integers(0, 2 * self.crop_padding + 1, (2, b))
            images = crop_images(images, top, left, self.crop_padding)
        pixels, labels = self._normalise(images), torch.from_numpy(labels)
        if self.cutout_size:
            row, column = draw.integers(0, height, b), draw.integers(0, width, b)
            pixels = cut_out(pixels, row, column, self.cutout_size)
        if epoch < self.small_epochs:
            pixels = shrink(pixels, self.small_size)
        if self.mixup_alpha or self.label_smoothing:
            labels = torch.nn.functional.one_hot(labels, self.num_classes).float()
            labels.lerp_(torch.full_like(labels, 1 / self.num_classes), self.label_smoothing)
        if self.mixup_alpha:
            share = draw.beta(self.mixup_alpha, self.mixup_alpha)
            pixels, labels = mix_up(pixels, share), mix_up(labels, share)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return {"pixel_values": pixels, "labels": labels}

    def _normalise(self, images: np.ndarray) -> torch.Tensor:
        """(image / 255 - mean) / std, as one product and one sum."""
        mean, std = (torch.tensor(v).float()[:, None, None] for v in (self.mean, self.std))
        scale, shift = 1 / (255 * std), -mean / std
        return torch.from_numpy(images).float().mul_(scale).add_(shift)


# ----------------------------------------------------------------------------------------- batches


class ImageBatches(torch.utils.data.Dataset):
    """Pictures of an array, fetched and augmented a batch at a time.

    A DataLoader asks `__getitems__` for a whole batch, and gets a list of one: the batch, which
    `whole_batch` (its `collate_fn`, or Trainer's `data_collator`) takes out. (A list, since Trainer
    looks through the items before the collator does.)

    An index is a row, of epoch 0; a pair (epoch, row), as `EpochSampler` gives it; or (epoch, row,
    turns), as `HardSampler` does.

    Args:
        images: (n, channels, height, width), uint8; may be memory-mapped.
        labels: (n,), int64.
        augment: what is done to a batch.
        rows: those that this data set is made of, such as `held_out` gives; all by default.

    Raises:
        ValueError: numbers of pictures and labels differ, or there are no rows.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        augment: Augment,
        rows: np.ndarray | None = None,
    ):
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} pictures, but {len(labels)} labels")
        self.images, self.labels, self.augment = images, labels, augment
        self.rows = np.arange(len(images)) if rows is None else rows
        if not len(self.rows):
            raise ValueError("a data set needs at least one row")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the sampler's next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> dict[str, torch.Tensor]:
        (batch,) = self.__getitems__([index])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence) -> list[dict[str, torch.Tensor]]:
        """`[{"pixel_values": (b, ...), "labels": (b, ...)}]`: the one batch of these indices."""
        columns = np.atleast_2d(np.asarray(indices, dtype=np.int64).T)  # (1, 2 or 3, b)
        epochs, positions, *turns = columns if len(columns) > 1 else ([0], *columns)
        if positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"an index must be from 0 to {len(self) - 1}: {indices}")
        rows = self.rows[positions]
        return [self.augment(self.images[rows], self.labels[rows], rows, int(epochs[0]), *turns)]


class EpochSampler(torch.utils.data.Sampler):
    """The rows of a data set in another order each epoch, and with each its epoch.

    For `ImageBatches`, and any other data set with `epoch`, `set_epoch` and (epoch, row) as index.

    Order and epoch depend on nothing but `seed` and what `set_epoch` was told last. The epoch lies
    with the data set, since Accelerate tells that one when a run of several processes is resumed
    inside an epoch, and only the sampler when it is not.
    """

    def __init__(self, dataset: ImageBatches, seed: int = 0):
        self.dataset, self.seed = dataset, seed

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.dataset.epoch
        order = np.random.default_rng([self.seed, epoch, 0, ORDER]).permutation(len(self.dataset))
        return ((epoch, row) for row in order.tolist())


class HardSampler(EpochSampler):
    """An `EpochSampler` whose epochs leave out a share of the rows: those of the smallest losses.

    From what a network knows it learns little, in the same time (Jiang et al., "Accelerating deep
    learning by focusing on the biggest losers", 2019). Whoever trains tells the losses as they
    come, so that they cost nothing. What one epoch leaves out, the next one takes in: so no loss is
    older than two epochs, and no row is forgotten. With each row it gives how often that was taken
    before: by epochs, easy pictures, of which every second one leaves out, would always be mirrored
    or never.

    Args:
        dataset: whose rows these are.
        seed: of the orders.
        skipped: share of the rows that an epoch leaves out, at most a half; of the first, too, so
            that all are equally long, as Trainer wants them.
    """

    def __init__(self, dataset: ImageBatches, seed: int, skipped: float):
        super().__init__(dataset, seed)
        self.num_skipped = int(skipped * len(dataset))
        self.losses = np.full(len(dataset), np.inf, dtype=np.float32)  # inf: not in the last epoch
        self.turns = np.zeros(len(dataset), dtype=np.int64)  # epochs that took a row, with this one
        self.order, self.order_epoch, self.position = None, -1, 0

    def __len__(self) -> int:
        return len(self.dataset) - self.num_skipped

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch = self.dataset.epoch
        if epoch != self.order_epoch:  # else a run goes on inside this epoch
            if self.order is not None:  # rows that the last epoch did not come to
                self.losses[self.order[self.position :]] = np.inf
                self.turns[self.order[self.position :]] -= 1
            order = np.array([row for _, row in super().__iter__()])
            hardest = np.argsort(-self.losses[order], kind="stable")
            taken = np.sort(hardest[: len(self)])  # in the order in which they were
            self.losses[order[hardest[len(self) :]]] = np.inf
            self.order, self.order_epoch, self.position = order[taken], epoch, 0
            self.turns[self.order] += 1
        before = self.turns[self.order] - 1
        return ((epoch, row, turns) for row, turns in zip(self.order, before, strict=True))

    def record(self, losses: np.ndarray) -> None:
        """Takes the losses of the next rows of this epoch."""
        rows = self.order[self.position : self.position + len(losses)]
        self.losses[rows] = losses[: len(rows)]  # several processes may fill up their last batch
        self.position += len(rows)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a run needs to go on."""
        place = torch.tensor([self.order_epoch, self.position])
        arrays = {"losses": self.losses, "turns": self.turns, "order": self.order}
        return {"place": place, **{name: torch.from_numpy(x) for name, x in arrays.items()}}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on where another sampler was when it gave `state`."""
        self.losses, self.turns, self.order = (
            state[name].numpy() for name in ("losses", "turns", "order")
        )
        self.order_epoch, self.position = state["place"].tolist()


def whole_batch(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The collator: `ImageBatches` has made the batch already."""
    (batch,) = items
    return batch
