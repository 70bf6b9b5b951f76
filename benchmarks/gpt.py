"""Our GPT beside transformers' GPT-2 of the same shape, and the time to nanoGPT's loss.

    python benchmarks/gpt.py

GPT and GPT-2 in one run on one machine, both in bf16 where that is fast, taking turns so that a
slow minute hits both. Adds a run to results/benchmarks/gpt.json: the same kind of machine may be
twice as fast another day, so only what is measured in one run can be compared.
"""

import copy
import json
import statistics
import tempfile

import torch
from side_by_side import DTYPE, FOLDER, PRECISION, autocast, large_product, profile, take_turns
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from groundup.models.from_gpt2 import gpt_from_gpt2
from groundup.train import gpt, machine, recipe, report

OUTPUT = FOLDER / "gpt.json"
BATCH, TIME = 32, 128
SHAPE = {"vocab_size": 66, "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512}
FUSED_GELU = {"activation_function": "gelu_pytorch_tanh"}  # the same function as GPT-2's own
# Its CPU recipe on such a machine, measured before; its loss is a mean over sampled blocks.
NANOGPT_LOSS, NANOGPT_SECONDS = 1.886, 118


def models() -> dict[str, torch.nn.Module]:
    """The same weights in both classes; GPT-2 as it comes, and with what is fastest for it here."""
    torch.manual_seed(0)
    off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(**SHAPE, **off, **special)
    sdpa = GPT2LMHeadModel(config)
    eager = copy.deepcopy(sdpa)
    eager.set_attn_implementation("eager")
    tuned = GPT2LMHeadModel(GPT2Config(**SHAPE, **off, **special, **FUSED_GELU))
    tuned.load_state_dict(sdpa.state_dict())
    tuned.set_attn_implementation("eager")
    ours = gpt_from_gpt2(sdpa)
    ours.set_attn_implementation("eager")
    return {
        "groundup": ours,
        "GPT-2": sdpa,
        "GPT-2, eager attention": eager,
        "GPT-2, eager attention, fused GELU": tuned,
    }


def training(candidates) -> dict[str, float]:
    """Tokens per second of a training step: forward, backward, fused AdamW; mixed precision."""
    tokens = torch.randint(SHAPE["vocab_size"], (BATCH, TIME))

    def trainer(model):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

        def step():
            with autocast():
                loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    seconds = take_turns({name: trainer(model) for name, model in candidates.items()})
    return {name: BATCH * TIME / value for name, value in seconds.items()}


def generation(candidates, batch: int) -> dict[str, float]:
    """New tokens per second of greedy `generate` with the cache.

    Weights in bf16 where that is fast, attention by SDPA, as `from_pretrained` gives it.
    """
    prompt = torch.randint(1, SHAPE["vocab_size"], (batch, 16))
    new_tokens = 128

    def generator(model):
        model = copy.deepcopy(model).to(DTYPE).eval()
        model.set_attn_implementation("sdpa")
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        mask = torch.ones_like(prompt)
        return lambda: model.generate(prompt, attention_mask=mask, do_sample=False, **length)

    names = ("groundup", "GPT-2")
    seconds = take_turns({name: generator(candidates[name]) for name in names})
    return {name: batch * new_tokens / value for name, value in seconds.items()}


def time_to_nanogpt() -> dict:
    """Training time of configs/gpt_fast.yaml, and its losses, over three seeds."""
    runs = []
    config = str(recipe.CONFIGS / "gpt_fast.yaml")
    for seed in range(3):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--config", config, f"--seed={seed}", f"--output_dir={folder}/run"]
            runs.append(gpt.main([*flags, "--disable_tqdm=true"]))
    losses = [run["metrics"]["nats_per_character"] for run in runs]
    seconds = [run["train_seconds"] for run in runs]
    return {
        "seconds": statistics.mean(seconds),
        "seconds_of_seeds": seconds,
        "loss": statistics.mean(losses),
        "losses_of_seeds": losses,
        "nanogpt": {"seconds": NANOGPT_SECONDS, "loss": NANOGPT_LOSS},
    }


def step_of(model):
    """Forward and backward, for a profile."""
    tokens = torch.randint(SHAPE["vocab_size"], (BATCH, TIME))
    model.train()

    def step():
        with autocast():
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        model.zero_grad()

    return step


def main() -> None:
    """Measures all and writes the figures."""
    machine.set_threads()
    machine.keep_freed_memory()
    logging.set_verbosity_error()
    candidates = models()
    train_speed = training(candidates)

    def ratios(speed):
        return {name: speed["groundup"] / v for name, v in speed.items() if name != "groundup"}

    generate_speed = {batch: generation(candidates, batch) for batch in (1, 16)}
    ours = candidates["groundup"]
    matrices = sum(p.numel() for p in ours.parameters() if p.ndim == 2)
    limit = large_product()
    content = {
        "shape": {**SHAPE, "batch": BATCH, "time": TIME},
        "training_tokens_per_second": train_speed,
        "training_ratios": ratios(train_speed),
        "generation_tokens_per_second": generate_speed,
        "generation_ratios": {batch: ratios(speed) for batch, speed in generate_speed.items()},
        "time_to_nanogpt": time_to_nanogpt(),
        "precision": PRECISION,
        "flops_of_large_product": limit,
        "share_of_that_in_training": 6 * matrices * train_speed["groundup"] / limit,
        "profile_of_forward_and_backward": profile(step_of(ours)),
        **report.provenance(),
    }
    runs = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else []
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([*runs, content], indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
