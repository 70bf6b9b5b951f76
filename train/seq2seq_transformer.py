"""Trains the Transformer that translates: `train/seq2seq.py` with another network.

accelerate launch -q train/seq2seq_transformer.py               # German to English, Multi30k
accelerate launch -q train/seq2seq_transformer.py --evaluate_only
"""

from groundup.models.seq2seq_transformer import (
    Seq2SeqTransformerConfig,
    Seq2SeqTransformerForConditionalGeneration,
)
from groundup.train import recipe, seq2seq


@recipe.one_line_errors
def main(argv=None):
    """Trains it. Returns what metrics.json holds."""
    config, model = Seq2SeqTransformerConfig, Seq2SeqTransformerForConditionalGeneration
    return seq2seq.train(argv, "seq2seq_transformer", config, model)


if __name__ == "__main__":
    main()
