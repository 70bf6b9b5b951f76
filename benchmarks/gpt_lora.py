"""From Shakespeare to Dickens: LoRA beside training all weights, at the same number of updates.

    python benchmarks/gpt_lora.py [--updates 150]

Variants of `configs/gpt_dickens.yaml`; both LoRA and full fine-tuning have a choice of rates, so
that neither is beaten for being badly set. The last is `configs/gpt.yaml`, which made the base
model, on the same text. Writes results/benchmarks/gpt_dickens.json.
"""

import argparse

from side_by_side import train, write

from groundup.train import gpt, recipe

CONFIG = ["--config", str(recipe.CONFIGS / "gpt_dickens.yaml")]
ALL_WEIGHTS = [*CONFIG, "--lora_rank=0"]
FROM_NOTHING = ["--dataset=dickens"]  # configs/gpt.yaml, which made the base model
VARIANTS = {
    "LoRA, rank 16, rate 0.005 (the default)": CONFIG,
    "LoRA, rank 16, rate 0.01": [*CONFIG, "--learning_rate=0.01"],
    "LoRA, rank 4": [*CONFIG, "--lora_rank=4"],
    "all weights, AdamW, rate 0.003": [*ALL_WEIGHTS, "--learning_rate=0.003"],
    "all weights, AdamW, rate 0.001": [*ALL_WEIGHTS, "--learning_rate=0.001"],
    "all weights, Muon": [*ALL_WEIGHTS, "--muon_learning_rate=0.02", "--learning_rate=0.003"],
    "from nothing, Muon": FROM_NOTHING,
}


def main() -> None:
    """Runs all variants and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=150)
    args = parser.parse_args()
    rows = []
    for name, flags in VARIANTS.items():
        run = train(gpt.main, flags, args.updates)
        metrics = run["metrics"]
        rows.append(
            {
                "variant": name,
                "before": metrics.get(f"{gpt.SCORE}_before"),
                "after": metrics[gpt.SCORE],
                "trained_parameters": metrics.get("trained_parameters"),
                "train_seconds": run["train_seconds"],
            }
        )
        print(rows[-1])
    content = {"metric": gpt.SCORE, "data": run["data"], "updates": args.updates, "rows": rows}
    write("gpt_dickens", content)


if __name__ == "__main__":
    main()
