"""What the choices of Tiny GPT are worth: positions and tokenizers, at equal training time.

    python benchmarks/gpt_ablations.py [--seconds 60]

Every variant is `configs/gpt.yaml` with one thing changed, trained for as many updates as fit into
the same time, found by a short run before. Writes results/benchmarks/gpt_ablations.json, which the
card shows.
"""

import argparse

from side_by_side import train, write

from groundup.train import gpt

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


def main() -> None:
    """Runs all variants and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="training time of each variant")
    args = parser.parse_args()
    rows = []
    for name, flags in VARIANTS.items():
        probe = train(gpt.main, flags, PROBE_UPDATES)
        updates = int(args.seconds / (probe["train_seconds"] / PROBE_UPDATES))
        run = train(gpt.main, flags, updates)
        rows.append(
            {
                "variant": name,
                "score": run["metrics"][gpt.SCORE],
                "updates": updates,
                "train_seconds": run["train_seconds"],
            }
        )
        print(rows[-1])
    setting = f"{args.seconds:.0f} s of training each, one seed"
    write("gpt_ablations", {"metric": gpt.SCORE, "setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
