"""What pre-training is worth to BERT's judgement of sentences, and what LoRA makes of it.

    python benchmarks/bert_ablations.py [--task sst2|cola] [--seeds 3] [--only lora]

Variants of `configs/bert_sst2.yaml` or `configs/bert_cola.yaml`, each with several seeds and for as
many updates, beside the published run, which is read from results/. Writes
results/benchmarks/bert_<task>_ablations.json, which the card of that run shows. Rows that are not
measured anew (`--only`) stay: random weights are no better from another `base_model`.
"""

import argparse
import json

import yaml
from side_by_side import FOLDER, ablate, write

from groundup import results
from groundup.train import bert, recipe

NAMES = {
    "lora": "pre-trained, LoRA of rank 8",
    "random": "from random weights",
    "random_slow": "from random weights, at a rate of 0.0001",
}
# Of LoRA. On CoLA, 0.002 learns to call all sentences acceptable, a correlation of 0; 0.0005: 0.16
# held out.
LORA_RATES = {"sst2": 0.002, "cola": 0.0005}


def main() -> None:
    """Runs all variants with all seeds and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["sst2", "cola"], default="sst2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=NAMES, help="measure this variant, keep the other")
    args = parser.parse_args()
    name, score = f"bert_{args.task}", bert.SCORES[args.task]
    config = recipe.CONFIGS / f"{name}.yaml"
    updates = yaml.safe_load(config.read_text(encoding="utf-8"))["max_steps"]
    published = json.loads((results.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    scores = published["metrics"][score]
    row = {
        "variant": "pre-trained, all weights (published)",
        "score": scores["mean"],
        "values": scores["values"],
        "updates": updates,
        "train_seconds": published["train_seconds"],
        "commit": published["commit"],
    }
    fixed = ["--config", str(config)]
    flags = {
        "lora": ["--lora_rank=8", f"--learning_rate={LORA_RATES[args.task]}"],
        "random": ["--random_weights"],
        "random_slow": ["--random_weights", "--learning_rate=0.0001"],  # the best rate held out
    }
    variants = {NAMES[key]: flags[key] for key in ([args.only] if args.only else NAMES)}
    measured = ablate(bert.main, fixed, variants, score, updates, args.seeds)
    kept = []
    if args.only:
        earlier = json.loads((FOLDER / f"{name}_ablations.json").read_text(encoding="utf-8"))
        old = [row for row in earlier["rows"][1:] if row["variant"] not in variants]
        kept = [{"commit": earlier["commit"], **row} for row in old]
    rows = [row, *measured, *kept]
    seeds = ", ".join(str(len(row["values"])) for row in rows)
    rate = f"LoRA at a rate of its own, {LORA_RATES[args.task]}"
    setting = f"on {published['data']['name']}; seeds: {seeds}; {rate}"
    write(f"{name}_ablations", {"metric": score, "setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
