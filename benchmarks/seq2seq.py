"""Our seq2seq networks beside the same on torch.nn.GRU, and beside transformers' Pegasus.

    python benchmarks/seq2seq.py [--rounds 21]

A training step (forward, backward, clipping, fused AdamW) with the shapes of configs/seq2seq.yaml
and configs/seq2seq_transformer.yaml, the same weights and the same batch of full length, in one
run, taking turns so that a slow minute hits all. torch.nn.GRU reads padded batches only when they
are packed, which would cost it more. Writes results/benchmarks/seq2seq.json.
"""

import argparse
import copy
import json

import torch
import yaml
from side_by_side import PRECISION, autocast, profile, take_turns, write
from torch import nn

from groundup.models.from_pegasus import pegasus_from_seq2seq
from groundup.models.from_torch_rnn import LAYER_KEYS
from groundup.models.recurrent import RecurrentLayer
from groundup.models.seq2seq import (
    BidirectionalLayer,
    Seq2SeqConfig,
    Seq2SeqForConditionalGeneration,
)
from groundup.models.seq2seq_transformer import (
    Seq2SeqTransformerConfig,
    Seq2SeqTransformerForConditionalGeneration,
)
from groundup.train import machine, recipe

SOURCE, TARGET = 18, 16  # tokens of a sentence of Multi30k, with its end


def settings_of(name: str) -> dict:
    """What a config holds."""
    return yaml.safe_load((recipe.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def torch_gru(*layers: RecurrentLayer) -> nn.GRU:
    """One layer of PyTorch's GRU with our weights: of one direction, or of two."""
    size, inputs = layers[0].hidden_size, layers[0].input_proj.in_features
    gru = nn.GRU(inputs, size, batch_first=True, bidirectional=len(layers) == 2)
    gru.load_state_dict(
        {
            theirs.format(i=0) + direction: layer.state_dict()[ours]
            for layer, direction in zip(layers, ("", "_reverse"), strict=False)
            for ours, theirs in LAYER_KEYS.items()
        }
    )
    return gru


class TorchBidirectionalLayer(nn.Module):
    """A layer of the encoder on torch.nn.GRU."""

    def __init__(self, layer: BidirectionalLayer):
        super().__init__()
        self.gru = torch_gru(layer.onward, layer.back)

    def forward(self, inputs, mask=None):
        """As ours, for batches of full length."""
        outputs, ends = self.gru(inputs)
        return outputs, torch.cat(tuple(ends), -1)


class TorchLayer(nn.Module):
    """A layer of the decoder on torch.nn.GRU."""

    def __init__(self, layer: RecurrentLayer):
        super().__init__()
        self.gru = torch_gru(layer)

    def forward(self, inputs, start):
        """As ours."""
        outputs, end = self.gru(inputs, start[0][None].to(inputs.dtype))
        return outputs, (end[0],)


def on_torch_gru(model: Seq2SeqForConditionalGeneration) -> Seq2SeqForConditionalGeneration:
    """The same network and weights, whose recurrent layers are PyTorch's."""
    model = copy.deepcopy(model)
    encoder, decoder = model.model.encoder, model.model.decoder
    encoder.layers = nn.ModuleList(TorchBidirectionalLayer(layer) for layer in encoder.layers)
    decoder.layers = nn.ModuleList(TorchLayer(layer) for layer in decoder.layers)
    return model


def candidates() -> dict[str, dict[str, nn.Module]]:
    """Of each of our networks, itself and its peer."""
    found = {}
    for name, config_class, model_class, peer, make in (
        ("seq2seq", Seq2SeqConfig, Seq2SeqForConditionalGeneration, "torch.nn.GRU", on_torch_gru),
        (
            "seq2seq_transformer",
            Seq2SeqTransformerConfig,
            Seq2SeqTransformerForConditionalGeneration,
            "Pegasus",
            pegasus_from_seq2seq,
        ),
    ):
        settings = settings_of(name)
        shape = {key: value for key, value in settings.items() if hasattr(config_class, key)}
        torch.manual_seed(0)
        ours = model_class(config_class(vocab_size=settings["tokenizer_vocab_size"], **shape))
        if "attn_implementation" in settings:
            ours.set_attn_implementation(settings["attn_implementation"])
        found[name] = {"groundup": ours, peer: make(ours)}
        if name == "seq2seq_transformer":
            eager = copy.deepcopy(found[name][peer])
            eager.set_attn_implementation("eager")
            found[name][f"{peer}, eager attention"] = eager
    return found


def stepper(model: nn.Module, batch: dict[str, torch.Tensor]):
    """A training step, in mixed precision."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step():
        with autocast():
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(name: str, models: dict[str, nn.Module], rounds: int) -> dict:
    """Seconds of a step of each, after a check that they compute the same.

    Raises:
        RuntimeError: they do not, so that there is nothing to compare.
    """
    settings = settings_of(name)
    rows = settings["per_device_train_batch_size"]
    tokens = torch.randint(3, settings["tokenizer_vocab_size"], (rows, SOURCE + TARGET))
    source, target = (part.contiguous() for part in tokens.split((SOURCE, TARGET), dim=1))
    batch = {"input_ids": source, "labels": target}
    with torch.no_grad():
        losses = {peer: model.eval()(**batch).loss.item() for peer, model in models.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise RuntimeError(f"the models differ: {losses}")
    steps = {peer: stepper(model, batch) for peer, model in models.items()}
    seconds = take_turns(steps, rounds)
    return {
        "batch": [rows, SOURCE, TARGET],
        "loss_before": losses["groundup"],
        "seconds": seconds,
        "speed_beside": {
            peer: value / seconds["groundup"]
            for peer, value in seconds.items()
            if peer != "groundup"
        },
        "profile_of_a_step": profile(steps["groundup"]),
    }


def main() -> None:
    """Measures both and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="steps of each")
    rounds = parser.parse_args().rounds
    machine.set_threads()
    machine.keep_freed_memory()
    measured = {name: measure(name, models, rounds) for name, models in candidates().items()}
    content = {"precision": PRECISION, **measured}
    print(json.dumps(content, indent=1))
    write("seq2seq", content)


if __name__ == "__main__":
    main()
