"""What a training step of a picture classifier waits for and is spent on, by its config."""

import torch
from side_by_side import PRECISION, autocast, large_product, profile, take_turns
from torch.utils.flop_counter import FlopCounterMode

from groundup.data_scripts.images import HardSampler, whole_batch
from groundup.train import pictures, recipe
from groundup.train.muon import Muon


def measure_steps(script, row: str, config_class) -> dict:
    """Figures of configs/<row>.yaml, for each size that its pictures have.

    The share of the time that fetching batches takes, products per second, and which operations a
    step is spent on, largest first. Arguments as of `pictures.run`.
    """
    _, picture_args, model_args, args = recipe.parse_arguments(
        [],
        row,
        pictures.PictureArguments,
        recipe.model_arguments(config_class, leave_out=["num_channels"]),
        description=__doc__,
    )
    data = pictures.load_pictures(picture_args, args.seed)
    model = script.new_model(model_args, data).to(memory_format=torch.channels_last)
    model.train()
    optimizer = Muon(recipe.muon_groups(model, args))
    found = {"batch": args.per_device_train_batch_size, "precision": PRECISION}
    for epoch in sorted({0, picture_args.small_epochs}):  # the first of small, of large pictures
        batches = batches_of(data.train, epoch, picture_args, args)
        batch = next(batches)
        name = f"{batch['pixel_values'].shape[-1]} pixels"
        found[name] = measure_step(model, optimizer, batch, batches)
    return found | {"flops_of_large_product": large_product()}


def measure_step(model, optimizer, batch, batches) -> dict:
    """Figures of a step on one batch, and of fetching others of its size."""

    def step():
        with autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = take_turns({"fetch": lambda: next(batches), "step": step})
    return {
        "seconds": seconds,
        "share_of_waiting": seconds["fetch"] / sum(seconds.values()),
        "flops": count_flops(model, batch) / seconds["step"],
        "profile_of_a_step": profile(step),
    }


def batches_of(dataset, epoch: int, picture_args, args):
    """The batches of an epoch as a run gets them, with no end."""
    dataset.set_epoch(epoch)
    loader = torch.utils.data.DataLoader(
        dataset,
        args.per_device_train_batch_size,
        sampler=HardSampler(dataset, args.seed, picture_args.skip_easy),
        collate_fn=whole_batch,
        drop_last=True,
    )
    while True:
        yield from loader


def count_flops(model, batch) -> int:
    """Of one batch, forward and backward, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()
