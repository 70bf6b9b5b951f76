"""Our recurrent networks beside the same on torch.nn, and the three cells at equal time.

    python benchmarks/rnn.py

Models with the same weights, embedding, dropout and output layer in one run on one machine, taking
turns so that a slow minute hits both. Adds a run to results/benchmarks/rnn.json: only what is
measured in one run can be compared. The three cells are read from results/ (their published runs).
Writes rnn_gradients.json beside it, and its figure, for the card: how gradients fade in the models
of pretrained/.
"""

import json
import statistics

import torch
import yaml
from side_by_side import FOLDER, PRECISION, take_turns, write
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from groundup import results
from groundup.data_scripts.shakespeare import load_shakespeare
from groundup.data_scripts.tokenization import encode_documents
from groundup.models.from_torch_rnn import torch_from_rnn
from groundup.models.rnn import RNNConfig, RNNForCausalLM
from groundup.train import machine, recipe, report
from groundup.train.rnn import CELL_NAMES, gradient_norms, plot_gradients

OUTPUT = FOLDER / "rnn.json"
CONFIGS = {"lstm": "rnn", "gru": "rnn_gru", "rnn": "rnn_vanilla"}
BATCH, TIME, VOCABULARY = 64, 64, 66
SHAPE = {"hidden_size": 512, "num_hidden_layers": 2, "hidden_dropout": 0.3}
NEW_TOKENS = 256
TITLE = "How gradients fade in the three cells"
TEXT = (
    "The trained models side by side, on the validation text: how much the loss at one position is "
    "felt by the state that the network carried so many tokens before."
)


class TorchLanguageModel(nn.Module):
    """The same model with PyTorch's own recurrent module (on CPUs, its LSTM is oneDNN's)."""

    def __init__(self, model: RNNForCausalLM):
        super().__init__()
        self.embedding, self.recurrent, self.head = torch_from_rnn(model)
        self.dropout = nn.Dropout(model.config.hidden_dropout)

    def forward(self, tokens, following):
        """The loss."""
        hidden, _ = self.recurrent(self.dropout(self.embedding(tokens)))
        logits = self.head(self.dropout(hidden)).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())

    @torch.inference_mode()
    def write(self, tokens, count: int):
        """The plainest loop there is: greedy, the state carried."""
        hidden, state = self.recurrent(self.embedding(tokens))
        for _ in range(count):
            tokens = self.head(hidden[:, -1:]).argmax(-1)
            hidden, state = self.recurrent(self.embedding(tokens), state)
        return tokens


def training(cell_type: str, bf16: bool) -> dict:
    """A training step: forward, backward, clipping, fused AdamW."""
    torch.manual_seed(0)
    config = RNNConfig(vocab_size=VOCABULARY, cell_type=cell_type, **SHAPE)
    ours = RNNForCausalLM(config).train()
    theirs = TorchLanguageModel(ours).train()
    tokens = torch.randint(VOCABULARY, (2, BATCH, TIME))

    def stepper(model, loss_of):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    seconds = take_turns(
        {
            "groundup": stepper(ours, lambda: ours(tokens[0], shift_labels=tokens[1]).loss),
            "torch.nn": stepper(theirs, lambda: theirs(tokens[0], tokens[1])),
        }
    )
    ratio = seconds["groundup"] / seconds["torch.nn"]
    return {"seconds": seconds, "time_beside_torch": ratio}


def generation(cell_type: str, batch: int) -> dict:
    """Greedy `generate` with the state, fp32, beside a plain loop over torch.nn."""
    torch.manual_seed(0)
    ours = RNNForCausalLM(RNNConfig(vocab_size=VOCABULARY, cell_type=cell_type, **SHAPE)).eval()
    theirs = TorchLanguageModel(ours).eval()
    prompt = torch.randint(1, VOCABULARY, (batch, 16))
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    seconds = take_turns(
        {
            "groundup, generate": lambda: ours.generate(
                prompt, attention_mask=mask, do_sample=False, **options
            ),
            "torch.nn, a plain loop": lambda: theirs.write(prompt, NEW_TOKENS),
        }
    )
    return {name: batch * NEW_TOKENS / value for name, value in seconds.items()}


def three_cells() -> list[dict]:
    """The published runs of the three cells: loss, time, updates per second."""
    rows = []
    for cell_type, config in CONFIGS.items():
        path = results.RESULTS / f"{config}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            settings = (recipe.CONFIGS / f"{config}.yaml").read_text(encoding="utf-8")
            seconds = statistics.mean(result["train_seconds"])
            rows.append(
                {
                    "cell": CELL_NAMES[cell_type],
                    "nats_per_character": result["metrics"]["nats_per_character"]["mean"],
                    "train_seconds": seconds,
                    "updates_per_second": yaml.safe_load(settings)["max_steps"] / seconds,
                    "peak_memory_bytes": max(result["peak_memory_bytes"]),
                }
            )
    return rows


def gradients() -> None:
    """How gradients fade in the trained models, on the validation text, for the card."""
    curves = {}
    for cell_type, config in CONFIGS.items():
        folder = results.PRETRAINED / config
        if folder.is_dir():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            texts = load_shakespeare()["validation"]["text"]
            ids = encode_documents(AutoTokenizer.from_pretrained(folder), texts)
            curves[f"trained {CELL_NAMES[cell_type]}"] = gradient_norms(model, ids)
    if curves:
        write("rnn_gradients", {"title": TITLE, "text": TEXT, "curves": curves})
        plot_gradients(FOLDER / "rnn_gradients.png", curves)


def main() -> None:
    """Measures all and writes the figures."""
    machine.set_threads()
    machine.keep_freed_memory()
    logging.set_verbosity_error()
    content = {
        "shape": {**SHAPE, "vocab_size": VOCABULARY, "batch": BATCH, "time": TIME},
        "training": {
            f"{cell_type}, {'bf16' if bf16 else 'fp32'}": training(cell_type, bf16)
            for cell_type in CONFIGS
            for bf16 in sorted({False, PRECISION == "bf16"})
        },
        "generation_tokens_per_second": {
            f"{cell_type}, {batch}": generation(cell_type, batch)
            for cell_type in CONFIGS
            for batch in (1, 16)
        },
        "three_cells": three_cells(),
        "peak_memory_bytes": machine.peak_memory_bytes(),
        **report.provenance(),
    }
    runs = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else []
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([*runs, content], indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))
    gradients()


if __name__ == "__main__":
    main()
