"""Scores, against sums made by hand."""

import math

import pytest
import torch

from groundup.train.gpt import block_losses
from groundup.train.metrics import ExactMatch, LanguageModelLoss, PhonemeErrorRate


def test_the_loss_of_a_language_model_by_hand():
    """Two blocks, of 3 and 1 tokens, that stand for 8 characters."""
    found = LanguageModelLoss().compute(predictions=[6.0, 2.0], references=[3, 1], characters=8)
    assert found == {
        "nats_per_character": pytest.approx(1.0),
        "bits_per_character": pytest.approx(1 / math.log(2)),
        "nats_per_token": pytest.approx(2.0),
    }


def test_long_texts_are_summed_in_double_precision():
    found = LanguageModelLoss().compute(
        predictions=[2.0**24, 1.0, 1.0], references=[1, 1, 1], characters=1
    )
    assert found["nats_per_character"] == 2**24 + 2  # in float32, the ones would be lost


def brute_force(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """Each token's -log p from the scores of the position before it, one by one."""
    rows = []
    for block, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = []
        for scores, target in zip(block[:-1], targets[1:], strict=True):
            if target != -100:
                terms.append(math.log(sum(map(math.exp, scores))) - scores[target])
        rows.append([sum(terms), len(terms)])
    return rows


@pytest.mark.parametrize("as_tuple", [False, True])
def test_block_losses_are_a_sum_over_tokens(as_tuple):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[1, 3:] = -100  # the padded end of a text
    labels[2, 0] = -100  # the first token is only read: this leaves nothing out
    found = block_losses((logits, "cache") if as_tuple else logits, labels)
    expected = torch.tensor(brute_force(logits, labels))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found[:, 1].tolist() == [4, 2, 4]


def test_block_losses_of_bfloat16_scores_are_summed_in_float32():
    logits = torch.randn(1, 200, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(1, 200, dtype=torch.long)
    expected = torch.tensor(brute_force(logits, labels))
    torch.testing.assert_close(block_losses(logits, labels), expected, atol=1e-3, rtol=0)


def test_an_exact_match_is_right_to_the_last_character():
    written = ["Ellohay.", "ellohay.", "Ellohay", "orldway "]
    right = ["Ellohay.", "Ellohay.", "Ellohay.", "orldway"]
    found = ExactMatch().compute(predictions=written, references=right)
    assert found == {"exact_match": 0.25}


def test_phoneme_errors_by_hand():
    written_and_right = [
        ("HH AH L OW", ["HH EH L OW", "HH AH L OW"]),  # the second is right: 0 of 4
        ("T AH M EY T", ["T AH M EY T OW", "T AH M AA T OW"]),  # the first lacks one: 1 of 6
        ("K AE T S", ["K AE T"]),  # one too many: 1 of 3
        ("", ["AY"]),  # 1 of 1
        ("B IY D", ["B AH", "B AH D Z"]),  # both are two away: 2 of the shorter's 2
    ]
    written, right = map(list, zip(*written_and_right, strict=True))
    found = PhonemeErrorRate().compute(predictions=written, references=right)
    assert found["phoneme_error_rate"] == pytest.approx((0 + 1 + 1 + 1 + 2) / (4 + 6 + 3 + 1 + 2))
    assert found["word_error_rate"] == pytest.approx(4 / 5)
