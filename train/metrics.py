"""Metrics as `evaluate.Metric`s that need no Hub (`evaluate.load` would download their code)."""

import datasets
import evaluate
import numpy as np
import torch

from groundup.data_scripts.tokenization import IGNORED_LABEL


class LanguageModelLoss(evaluate.Metric):
    """How surprised a language model is by a text.

    Losses per token cannot be compared between tokenizers, those per character can. Computed from
    `predictions`, the summed -log p of each block's tokens in nats, and `references`, the number of
    tokens scored in each block, with the length of the text:

        metric.compute(predictions=[..], references=[..], characters=len(text))

    gives `nats_per_character`, `bits_per_character`, `nats_per_token`.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, characters: int):
        nats, tokens = float(np.sum(predictions)), int(np.sum(references))
        return {
            "nats_per_character": nats / characters,
            "bits_per_character": nats / characters / np.log(2),
            "nats_per_token": nats / tokens,
        }


class Accuracy(evaluate.Metric):
    """The share of examples whose predicted class is the true one, by scikit-learn.

    `metric.compute(predictions=[..], references=[..])` gives `accuracy`, from 0 to 1.
    """

    def _info(self):
        integers = {name: datasets.Value("int64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", features=datasets.Features(integers)
        )

    def _compute(self, predictions, references):
        from sklearn.metrics import accuracy_score  # slow to import, and not all runs need it

        return {"accuracy": accuracy_score(references, predictions)}


def block_losses(logits, labels):
    """-log p of each block's tokens, summed: (batch, 2), the second column their number.

    It stands between model and metric so that an evaluation keeps two numbers per block rather than
    its logits.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    return next_token_losses(logits[:, :-1], labels[:, 1:])


def next_token_losses(logits, shift_labels):
    """The same where the labels are shifted already: (batch, time) beside (batch, time, vocab)."""
    nats = torch.nn.functional.cross_entropy(
        logits.float().mT, shift_labels, reduction="none", ignore_index=IGNORED_LABEL
    )
    return torch.stack((nats.sum(1), (shift_labels != IGNORED_LABEL).sum(1).float()), dim=1)
