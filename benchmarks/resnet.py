"""Our ResNets beside torchvision's, with the same weights; and what ResNet-20's training waits for.

    python benchmarks/resnet.py

Training and inference of both in channels_last, and in bf16 where that is fast, on random pictures
of 224 x 224, in one run, taking turns. For inference each is also measured with its norms folded
into the convolutions: ours by `fold_norms`, torchvision's by torch.fx. Writes
results/benchmarks/resnet.json.
"""

import copy
import json

import torch
import torchvision
from picture_steps import measure_steps
from side_by_side import DTYPE, PRECISION, autocast, take_turns, write
from torch.fx.experimental import optimization

from groundup.models.from_resnets import resnet_from_torchvision
from groundup.models.resnet import ResNetConfig
from groundup.train import machine, resnet

SIZE, CLASSES = 224, 1000
TRAIN_BATCH, BATCHES = 64, (1, 256)
ROUNDS = {1: 41, 256: 5}  # a batch of one takes a fraction of a second, of 256 some seconds


def pair(name: str) -> dict[str, torch.nn.Module]:
    """The same random weights in both classes."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name)
    both = {"groundup": resnet_from_torchvision(theirs), "torchvision": theirs}
    return {name: model.to(memory_format=torch.channels_last) for name, model in both.items()}


def pictures(batch: int) -> torch.Tensor:
    """Random ones."""
    return torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


def logits_of(model, pixel_values):
    """Of either class."""
    outputs = model(pixel_values)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def training() -> dict[str, float]:
    """Pictures per second of a training step of ResNet-18: forward, backward, SGD; autocast."""
    pixel_values, labels = pictures(TRAIN_BATCH), torch.randint(CLASSES, (TRAIN_BATCH,))

    def trainer(model):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

        def step():
            with autocast():
                logits = logits_of(model, pixel_values)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    seconds = take_turns({name: trainer(model) for name, model in pair("resnet18").items()})
    return {name: TRAIN_BATCH / value for name, value in seconds.items()}


@torch.inference_mode()
def inference(batch: int) -> dict[str, float]:
    """Pictures per second of ResNet-50 with weights in bf16 where that is fast."""
    candidates = {name: model.to(DTYPE).eval() for name, model in pair("resnet50").items()}
    candidates["groundup, folded"] = copy.deepcopy(candidates["groundup"]).fold_norms()
    candidates["torchvision, folded"] = optimization.fuse(candidates["torchvision"])
    pixel_values = pictures(batch).to(DTYPE)

    def runner(model):
        return lambda: logits_of(model, pixel_values)

    work = {name: runner(model) for name, model in candidates.items()}
    seconds = take_turns(work, ROUNDS[batch])
    return {name: batch / value for name, value in seconds.items()}


def main() -> None:
    """Measures all and writes the figures."""
    machine.set_threads()
    machine.keep_freed_memory()

    def with_ratios(speed):
        theirs = speed["torchvision"]
        ratios = {name: v / theirs for name, v in speed.items() if name != "torchvision"}
        if folded := speed.get("torchvision, folded"):
            ratios["both folded"] = speed["groundup, folded"] / folded
        return {"pictures_per_second": speed, "ratios": ratios}

    content = {
        "precision": PRECISION,
        "training_of_resnet20": measure_steps(resnet, "resnet", ResNetConfig),
        "training_resnet18": {"batch": TRAIN_BATCH} | with_ratios(training()),
        "inference_resnet50": {batch: with_ratios(inference(batch)) for batch in BATCHES},
    }
    print(json.dumps(content, indent=1))
    write("resnet", content)


if __name__ == "__main__":
    main()
