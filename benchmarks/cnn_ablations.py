"""What the choices of the CNN are worth, on 5,000 pictures that are held out.

    python benchmarks/cnn_ablations.py [--updates 180] [--seeds 1]

Every variant is `configs/cnn_fast.yaml` with one thing changed, trained for as many updates (180
are two epochs of what is left to train on, the first with small pictures). Writes
results/benchmarks/cnn_fast_ablations.json, which the card of that run shows.
"""

import argparse

from side_by_side import ablate, write

from groundup.train import cnn, pictures, recipe

FIXED = ["--config", str(recipe.CONFIGS / "cnn_fast.yaml"), "--hold_out=5000"]
VARIANTS = {
    "the default": [],
    "no flips": ["--flip=none"],
    "random flips": ["--flip=random"],
    "no shifts": ["--crop_padding=0"],
    "shifts of up to 4 pixels": ["--crop_padding=4"],
    "squares of 8 pixels cut out": ["--cutout_size=8"],
    "pairs mixed, alpha 0.2": ["--mixup_alpha=0.2"],
    "no label smoothing": ["--label_smoothing=0"],
    "a tenth of the features left out (dropout)": ["--dropout=0.1"],
    "weight decay of the classifier, 0.1": ["--weight_decay=0.1"],
    "a learned first layer": ["--whitening=false"],
    "pooling over windows of 3, which overlap": ["--pool_size=3"],
    "filters begin at random": ["--dirac_init=false"],
    "no small pictures": ["--small_size=0", "--small_epochs=0"],
    "a constant rate": ["--lr_scheduler_type=constant"],
    "ReLU in place of GELU": ["--hidden_act=relu"],
    "AdamW in place of Muon, rate 0.002": ["--muon_learning_rate=0", "--learning_rate=0.002"],
}


def main() -> None:
    """Runs all variants and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    rows = ablate(cnn.main, FIXED, VARIANTS, pictures.SCORE, args.updates, args.seeds)
    setting = (
        f"{args.updates} updates each, on 45,000 pictures; scored on 5,000 others, {args.seeds} "
        f"seed{'s' * (args.seeds > 1)} (standard error of one: 0.004)"
    )
    content = {"metric": pictures.SCORE, "setting": setting, "rows": rows}
    write("cnn_fast_ablations", content)


if __name__ == "__main__":
    main()
