"""What a training step of the CNN waits for and is spent on.

    python benchmarks/cnn.py

By configs/cnn.yaml's network and augmentation: the share of the time that fetching batches takes,
the products per second beside those of one large product, and which operations the rest goes to.
Writes results/benchmarks/cnn.json.
"""

import itertools
import json

import torch
from side_by_side import PRECISION, autocast, large_product, profile, take_turns, write
from torch.utils.flop_counter import FlopCounterMode

from groundup.data_scripts.images import EpochSampler, whole_batch
from groundup.models.cnn import CNNConfig
from groundup.train import cnn, pictures, recipe
from groundup.train.muon import Muon


def main() -> None:
    """Measures all and writes the figures."""
    _, picture_args, model_args, args = recipe.parse_arguments(
        [],
        "cnn",
        pictures.PictureArguments,
        recipe.model_arguments(CNNConfig),
        description=__doc__,
    )
    data = pictures.load_pictures(picture_args, args.seed)
    model = cnn.new_model(model_args, data).to(memory_format=torch.channels_last)
    model.train()
    loader = torch.utils.data.DataLoader(
        data.train,
        args.per_device_train_batch_size,
        sampler=EpochSampler(data.train, args.seed),
        collate_fn=whole_batch,
        drop_last=True,
    )
    batches = itertools.cycle(loader)
    batch = next(batches)

    optimizer = Muon(recipe.muon_groups(model, args))

    def step():
        with autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = take_turns({"fetch": lambda: next(batches), "step": step})
    flops = count_flops(model, batch)
    content = {
        "batch": args.per_device_train_batch_size,
        "seconds": seconds,
        "share_of_waiting": seconds["fetch"] / sum(seconds.values()),
        "flops": flops / seconds["step"],
        "precision": PRECISION,
        "flops_of_large_product": large_product(),
        "profile_of_a_step": profile(step),
    }
    print(json.dumps(content, indent=1))
    write("cnn", content)


def count_flops(model, batch) -> int:
    """Of one batch, forward and backward, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
