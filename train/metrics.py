"""Metrics as `evaluate.Metric`s that need no Hub (`evaluate.load` would download their code)."""

import datasets
import evaluate
import numpy as np
import sacrebleu
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


class ClassMetric(evaluate.Metric):
    """A metric of predicted and true classes."""

    def _info(self):
        integers = {name: datasets.Value("int64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", features=datasets.Features(integers)
        )


class Accuracy(ClassMetric):
    """The share of examples whose predicted class is the true one, by scikit-learn.

    `metric.compute(predictions=[..], references=[..])` gives `accuracy`, from 0 to 1.
    """

    def _compute(self, predictions, references):
        from sklearn.metrics import accuracy_score  # slow to import, and not all runs need it

        return {"accuracy": accuracy_score(references, predictions)}


class MatthewsCorrelation(ClassMetric):
    """How predicted and true classes go together, by scikit-learn: 0 for guessing, 1 at best.

    Other than accuracy it gives nothing for always naming the commoner class.
    `metric.compute(predictions=[..], references=[..])` gives `matthews_correlation`.
    """

    def _compute(self, predictions, references):
        from sklearn.metrics import matthews_corrcoef

        return {"matthews_correlation": matthews_corrcoef(references, predictions)}


class TextMetric(evaluate.Metric):
    """A metric of texts that were written and those that should have been."""

    def _info(self):
        texts = {name: datasets.Value("string") for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", features=datasets.Features(texts)
        )


class BLEU(TextMetric):
    """How alike translations and references are, by sacrebleu (Papineni et al. 2002; Post 2018).

    `metric.compute(predictions=[..], references=[..])` gives `bleu`, from 0 to 100, over the whole
    set, one reference each; `BLEU_SIGNATURE` says how it was counted.
    """

    def _compute(self, predictions, references):
        return {"bleu": sacrebleu.corpus_bleu(predictions, [references]).score}


# Case counts, and sacrebleu cuts texts into words itself.
BLEU_SIGNATURE = f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


class ExactMatch(TextMetric):
    """The share of texts that are their reference, to the last character.

    `metric.compute(predictions=[..], references=[..])` gives `exact_match`, from 0 to 1.
    """

    def _compute(self, predictions, references):
        right = sum(text == goal for text, goal in zip(predictions, references, strict=True))
        return {"exact_match": right / len(references)}


class PhonemeErrorRate(evaluate.Metric):
    """How far pronunciations are from what a dictionary has, by jiwer.

    A pronunciation is a text of phonemes with spaces between them. A word may be said in several
    ways, of which the closest counts, or of two that are as close the shorter:

        metric.compute(predictions=["HH AH L OW"], references=[["HH EH L OW", "HH AH L OW"]])

    gives `phoneme_error_rate`, the phonemes that are put in, left out or exchanged, of all words
    together, divided by the phonemes of the closest references; and `word_error_rate`, the share of
    words with any such error.
    """

    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.List(text)})
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features)

    def _compute(self, predictions, references):
        closest = [
            min((_edits(goal, text), len(goal.split())) for goal in goals)
            for text, goals in zip(predictions, references, strict=True)
        ]
        edits, phonemes = (sum(numbers) for numbers in zip(*closest, strict=True))
        wrong = sum(number > 0 for number, _ in closest)
        return {"phoneme_error_rate": edits / phonemes, "word_error_rate": wrong / len(closest)}


def _edits(reference: str, hypothesis: str) -> int:
    """How many tokens must be put in, left out or exchanged."""
    import jiwer  # not all runs need it

    found = jiwer.process_words(reference, hypothesis)
    return found.substitutions + found.deletions + found.insertions


def block_losses(logits, labels):
    """-log p of each block's tokens, summed: (batch, 2), the second column their number.

    It stands between model and metric so that an evaluation keeps two numbers per block rather than
    its logits.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    return label_losses(logits[:, :-1], labels[:, 1:])


def label_losses(logits, labels):
    """The same where each label stands beside its scores: (batch, time, vocab), (batch, time)."""
    nats = torch.nn.functional.cross_entropy(
        logits.float().mT, labels, reduction="none", ignore_index=IGNORED_LABEL
    )
    return torch.stack((nats.sum(1), (labels != IGNORED_LABEL).sum(1).float()), dim=1)
