"""What the choices of Tiny GPT are worth: positions and tokenizers, at equal training time.

    python benchmarks/gpt_ablations.py [--seconds 60]

Every variant is `configs/gpt.yaml` with one thing changed, trained for as many updates as fit into
the same time, found by a short run before. Writes results/benchmarks/gpt_ablations.json, which the
card shows.
"""

import argparse
import json
import tempfile
from pathlib import Path

from groundup.train import gpt, report

OUTPUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "gpt_ablations.json"
PROBE_UPDATES = 30
# A sub-word is worth two to three characters: half the tokens see about as much text.
SUBWORDS = ["--max_position_embeddings=64", "--per_device_train_batch_size=64"]
VARIANTS = {
    "rotary positions, characters (the default)": [],
    "learned positions": ["--position_embedding_type=learned"],
    "sinusoidal positions": ["--position_embedding_type=sinusoidal"],
    "ALiBi positions": ["--position_embedding_type=alibi"],
    "byte-level BPE, 512 tokens": ["--tokenizer=bpe", "--tokenizer_vocab_size=512", *SUBWORDS],
    "Unigram, 512 tokens": ["--tokenizer=unigram", "--tokenizer_vocab_size=512", *SUBWORDS],
    "byte-level BPE, 2048 tokens": ["--tokenizer=bpe", "--tokenizer_vocab_size=2048", *SUBWORDS],
    "AdamW in place of Muon, rate 0.003": ["--muon_learning_rate=0", "--learning_rate=0.003"],
    "AdamW in place of Muon, rate 0.001": ["--muon_learning_rate=0", "--learning_rate=0.001"],
}


def train(flags: list[str], updates: int) -> dict:
    """The metrics.json of one run of so many updates."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"--max_steps={updates}", f"--output_dir={folder}/run", "--eval_strategy=no"]
        fixed += ["--save_strategy=no", "--disable_tqdm=true"]
        return gpt.main([*flags, *fixed])


def main() -> None:
    """Runs all variants and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="training time of each variant")
    args = parser.parse_args()
    rows = []
    for name, flags in VARIANTS.items():
        probe = train(flags, PROBE_UPDATES)
        updates = int(args.seconds / (probe["train_seconds"] / PROBE_UPDATES))
        run = train(flags, updates)
        rows.append(
            {
                "variant": name,
                "score": run["metrics"][gpt.SCORE],
                "updates": updates,
                "train_seconds": run["train_seconds"],
            }
        )
        print(rows[-1])
    content = {
        "metric": gpt.SCORE,
        "seconds": args.seconds,
        "rows": rows,
        **report.provenance(),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
