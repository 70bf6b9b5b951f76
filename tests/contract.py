"""What each model declares for the contract in `test_contract.py`. A new model adds one `Row`.

Keep the models tiny: the whole contract of a row should take a few seconds on one core.
"""

import ast
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from groundup.models.bert import BERTConfig, BERTForMaskedLM, BERTForSequenceClassification
from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.models.gpt import GPTConfig, GPTForCausalLM
from groundup.models.resnet import ResNetConfig, ResNetForImageClassification
from groundup.models.rnn import RNNConfig, RNNForCausalLM
from groundup.models.seq2seq import Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.models.seq2seq_transformer import (
    Seq2SeqTransformerConfig,
    Seq2SeqTransformerForConditionalGeneration,
)
from groundup.models.word2vec import Word2VecConfig, Word2VecModel


@dataclass
class Row:
    """One model under the contract.

    Args:
        name: as in the table of rows, with a variant where there are several ("gpt-rotary").
        model: makes a tiny model with random weights; the caller seeds. No dropout.
        batch: makes a batch with labels, at least two examples; the caller seeds.
        initial_loss: what theory says before any training, such as ln N for N equal choices.
        auto_class: the Auto class of the task.
        example: inputs for a model of any size, made from its config; for `pretrained/`.
        padding: a function (model, side) -> pairs of tensors that must be equal, the output for an
            example in a padded batch and alone; or the reason why padding makes no sense here.
        padding_sides: where it may stand.
        initial_tolerance: relative, for `initial_loss`.
        overfit_steps, overfit_lr, overfit_share: after so many AdamW steps on one batch, the loss
            is below this share of its first value.
        unused: parameters that the loss does not reach, and why: {name: reason}.
        labels: the keys of the batch that only the task model takes.
        evaluation_differs: why a fresh model's loss is another one in evaluation, if it is.
    """

    name: str
    model: Callable[[], PreTrainedModel]
    batch: Callable[[], dict]
    initial_loss: float
    auto_class: str
    example: Callable[[PreTrainedConfig], dict]
    padding: Callable[[PreTrainedModel, str], list[tuple[torch.Tensor, torch.Tensor]]] | str
    padding_sides: tuple[str, ...] = ("right", "left")
    initial_tolerance: float = 0.03
    overfit_steps: int = 60
    overfit_lr: float = 1e-2
    overfit_share: float = 0.1
    unused: dict[str, str] | None = None
    labels: tuple[str, ...] = ("labels",)
    evaluation_differs: str | None = None

    def make(self, seed: int = 0) -> tuple[PreTrainedModel, dict]:
        """The model, ready to train, and its batch; the same for the same seed."""
        torch.manual_seed(seed)
        return self.model().train(), self.batch()

    def inputs(self, batch: dict) -> dict:
        """The batch without what only the task model takes."""
        return {key: value for key, value in batch.items() if key not in self.labels}


# ---------------------------------------------------------------------------------- what rows use


def run(model: nn.Module, batch: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor that the model gives back; seeded, since some models draw noise."""
    torch.manual_seed(seed)
    outputs = model(**batch)
    return {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}


def train(row: Row, steps: int, seed: int = 0) -> tuple[list[float], PreTrainedModel]:
    """A few AdamW steps on one batch: the loss before each step, and the model after the last."""
    model, batch = row.make(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=row.overfit_lr)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def gradients(model: PreTrainedModel, batch: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """The gradient of the loss by each parameter; zeros where the loss does not reach it."""
    model.zero_grad()
    torch.manual_seed(seed)
    model(**batch).loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def module_of(model: PreTrainedModel):
    """The model file that a model comes from."""
    return sys.modules[type(model).__module__]


def code_files(source: Path) -> set[Path]:
    """A model file and all that it imports by `from .sibling import name`, recursively."""
    found, waiting = set(), [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == 1:
                    waiting.append(path.parent / f"{node.module}.py")
    return found


def some_tokens(config: PreTrainedConfig) -> dict:
    """One short text for a language model."""
    return {"input_ids": torch.arange(16)[None] % config.vocab_size}


def some_picture(config: PreTrainedConfig) -> dict:
    """One small picture."""
    return {
        "pixel_values": torch.linspace(-2, 2, config.num_channels * 32 * 32).view(1, -1, 32, 32)
    }


def token_padding(vocab_size: int, lengths=(5, 9, 3)) -> Callable:
    """How padding is tested where the input is `input_ids` and the output one vector a token."""

    def check(model, side):
        texts = [torch.randint(vocab_size, (length,)) for length in lengths]
        ids = torch.zeros(len(texts), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            where = slice(None, len(text)) if side == "right" else slice(-len(text), None)
            ids[i, where], mask[i, where] = text, 1
        padded = model(input_ids=ids, attention_mask=mask).logits
        return [
            (padded[i][mask[i].bool()], model(input_ids=text[None]).logits[0])
            for i, text in enumerate(texts)
        ]

    return check


# -------------------------------------------------------------------------------------- the rows

VOCABULARY = 61
# What is added to all keys alike is added to all scores of a query alike, and softmax ignores it.
# (Rotary positions turn the keys, and with them the bias, each by another angle.)
KEY_BIASES = {
    f"model.layers.{i}.attention.k_proj.bias": "softmax ignores what is added to all scores alike"
    for i in range(2)
}


def gpt(position_embedding_type: str) -> Row:
    """GPT: next-token prediction over random text, so each of the tokens is as likely."""

    def model():
        return GPTForCausalLM(
            GPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=3,  # not a power of two, for ALiBi's slopes
                max_position_embeddings=24,
                position_embedding_type=position_embedding_type,
            )
        )

    def batch():
        tokens = torch.randint(VOCABULARY, (4, 24))  # all learned positions are used
        return {"input_ids": tokens, "labels": tokens}

    return Row(
        name=f"gpt-{position_embedding_type}",
        model=model,
        batch=batch,
        initial_loss=math.log(VOCABULARY),
        auto_class="AutoModelForCausalLM",
        example=some_tokens,
        padding=token_padding(VOCABULARY),
        unused=None if position_embedding_type == "rotary" else KEY_BIASES,
    )


def rnn(cell_type: str) -> Row:
    """RNN: next-token prediction over random text, so each of the tokens is as likely."""

    def model():
        return RNNForCausalLM(
            RNNConfig(
                vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, cell_type=cell_type
            )
        )

    def batch():
        tokens = torch.randint(VOCABULARY, (4, 16))
        return {"input_ids": tokens, "labels": tokens}

    return Row(
        name=f"rnn-{cell_type}",
        model=model,
        batch=batch,
        initial_loss=math.log(VOCABULARY),
        auto_class="AutoModelForCausalLM",
        example=some_tokens,
        padding=token_padding(VOCABULARY),
        overfit_lr=2e-2,
    )


def a_translation(config: PreTrainedConfig) -> dict:
    """A short source, and what was written of its target."""
    tokens = torch.arange(3, 15)[None] % config.vocab_size
    return {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}


def translation_batch() -> dict:
    """Sources, and targets of random tokens behind the start, which is token 1."""
    labels = torch.randint(3, VOCABULARY, (4, 10))
    return {
        "input_ids": torch.randint(3, VOCABULARY, (4, 12)),
        "decoder_input_ids": torch.nn.functional.pad(labels[:, :-1], (1, 0), value=1),
        "labels": labels,
    }


def translation_padding(model, side):
    """How padding of the source is tested."""
    sources = [torch.randint(3, VOCABULARY, (length,)) for length in (5, 9, 3)]
    target = torch.randint(3, VOCABULARY, (3, 6))
    ids = torch.zeros(3, 9, dtype=torch.long)
    for row, source in zip(ids, sources, strict=True):
        row[slice(len(source)) if side == "right" else slice(-len(source), None)] = source
    scores = model(ids, (ids > 0).long(), decoder_input_ids=target).logits
    return [
        (scores[i], model(source[None], decoder_input_ids=target[i : i + 1]).logits[0])
        for i, source in enumerate(sources)
    ]


def seq2seq(attention_type: str, name: str | None = None, **options) -> Row:
    """Seq2seq: targets of random tokens, so each of the tokens is as likely."""

    def model():
        sizes = {"vocab_size": VOCABULARY, "hidden_size": 48}
        config = Seq2SeqConfig(**sizes, attention_type=attention_type, **options)
        return Seq2SeqForConditionalGeneration(config)

    return Row(
        name=f"seq2seq-{name or attention_type}",
        model=model,
        batch=translation_batch,
        initial_loss=math.log(VOCABULARY),
        auto_class="AutoModelForSeq2SeqLM",
        example=a_translation,
        padding=translation_padding,
        overfit_lr=2e-2,
        overfit_steps=90,
    )


def seq2seq_transformer() -> Row:
    """Seq2seq by a Transformer: as above."""

    def model():
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
        config = Seq2SeqTransformerConfig(vocab_size=VOCABULARY, **sizes)
        return Seq2SeqTransformerForConditionalGeneration(config)

    attentions = ("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross_attention")
    return Row(
        name="seq2seq-transformer",
        model=model,
        batch=translation_batch,
        initial_loss=math.log(VOCABULARY),
        auto_class="AutoModelForSeq2SeqLM",
        example=a_translation,
        padding=translation_padding,
        overfit_lr=5e-3,
        unused={
            key.replace("layers", f"{stack}.layers").replace("attention", attention): why
            for key, why in KEY_BIASES.items()
            for stack, attention in attentions
        },
    )


def bert_config(**options) -> BERTConfig:
    """The shape of a tiny BERT."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "max_position_embeddings": 24}
    return BERTConfig(**(sizes | options))


BERT_KEY_BIASES = {key.replace("model.", "bert.", 1): why for key, why in KEY_BIASES.items()}


def bert_masked_lm() -> Row:
    """BERT: hidden tokens of random text, so each of the tokens is as likely."""

    def batch():
        tokens = torch.randint(1, VOCABULARY, (4, 24))  # all positions are used
        hidden = torch.arange(24) % 4 == 1
        segments = (torch.arange(24) > 12).long().expand_as(tokens)
        return {
            "input_ids": tokens.masked_fill(hidden, 1),
            "token_type_ids": segments,
            "labels": tokens.masked_fill(~hidden, -100),
        }

    return Row(
        name="bert-masked-lm",
        model=lambda: BERTForMaskedLM(bert_config()),
        batch=batch,
        initial_loss=math.log(VOCABULARY),
        auto_class="AutoModelForMaskedLM",
        example=some_tokens,
        padding=token_padding(VOCABULARY),
        padding_sides=("right",),  # positions count from the left edge, as BERT's do
        unused=BERT_KEY_BIASES,
    )


CLASSES = 7


def bert_classification() -> Row:
    """BERT: random texts, so each of the classes is as likely."""

    def batch():
        tokens = torch.randint(1, VOCABULARY, (8, 24))
        segments = (torch.arange(24) > 12).long().expand_as(tokens)
        labels = torch.arange(8) % CLASSES
        return {"input_ids": tokens, "token_type_ids": segments, "labels": labels}

    def padding(model, side):
        texts = [torch.randint(1, VOCABULARY, (length,)) for length in (5, 9, 3)]
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        scores = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
        alone = [model(input_ids=text[None]).logits[0] for text in texts]
        return list(zip(scores, alone, strict=True))

    return Row(
        name="bert-classification",
        model=lambda: BERTForSequenceClassification(bert_config(num_labels=CLASSES)),
        batch=batch,
        initial_loss=math.log(CLASSES),
        auto_class="AutoModelForSequenceClassification",
        example=some_tokens,
        padding=padding,
        padding_sides=("right",),
        unused=BERT_KEY_BIASES,
    )


def resnet(name: str, **options) -> Row:
    """ResNet: pictures of noise, so each of the classes is as likely."""

    def model():
        sizes = {"embedding_size": 8, "hidden_sizes": (8, 16), "depths": (1, 2)}
        return ResNetForImageClassification(ResNetConfig(num_labels=CLASSES, **(sizes | options)))

    def batch():
        return {"pixel_values": torch.randn(8, 3, 12, 12), "labels": torch.arange(8) % CLASSES}

    return Row(
        name=f"resnet-{name}",
        model=model,
        batch=batch,
        initial_loss=math.log(CLASSES),
        auto_class="AutoModelForImageClassification",
        example=some_picture,
        padding="the pictures of a batch are of one size",
        evaluation_differs="BatchNorm takes the batch's statistics in training only",
    )


def cnn(name: str, **options) -> Row:
    """CNN: pictures of noise, so each of the classes is as likely."""

    def model():
        sizes = {"num_labels": CLASSES, "hidden_sizes": (16, 24)}
        return CNNForImageClassification(CNNConfig(**sizes, **options))

    def batch():
        return {"pixel_values": torch.randn(8, 3, 12, 12), "labels": torch.arange(8) % CLASSES}

    return Row(
        name=name,
        model=model,
        batch=batch,
        initial_loss=math.log(CLASSES),
        auto_class="AutoModelForImageClassification",
        example=some_picture,
        padding="the pictures of a batch are of one size",
        evaluation_differs="BatchNorm takes the batch's statistics in training only",
        overfit_lr=1.0,  # the scores are made small by `logit_scale`
    )


def some_words(config: PreTrainedConfig) -> dict:
    """Some words of a vocabulary."""
    return {"input_ids": torch.arange(16)[None] % config.vocab_size}


def word2vec(architecture: str) -> Row:
    """Word2Vec: each of 1 + K guesses between yes and no is worth ln 2 before any training."""
    negatives = 5

    def model():
        return Word2VecModel(
            Word2VecConfig(vocab_size=VOCABULARY, hidden_size=24, architecture=architecture)
        )

    def batch():
        half = VOCABULARY // 2  # so that no word is both right and wrong
        return {
            "input_ids": torch.randint(1, half, (6,)),
            "context_ids": torch.randint(1, half, (6, 4)),
            "context_mask": torch.arange(4) < torch.arange(6)[:, None] % 4 + 1,
            "negative_ids": torch.randint(half, VOCABULARY, (6, 4, negatives)),
        }

    def padding(model, side):
        whole = batch()
        pairs = []
        for i in range(6):
            one = {key: value[i : i + 1] for key, value in whole.items()}
            if side == "left":
                for key in ("context_ids", "context_mask", "negative_ids"):
                    one[key] = one[key].flip(1)
            seen = one["context_mask"][0]
            alone = one | {"context_mask": None, "context_ids": one["context_ids"][:, seen]}
            if architecture == "skip-gram":
                alone["negative_ids"] = one["negative_ids"][:, seen]
            else:
                alone["negative_ids"] = one["negative_ids"][:, :1]
            pairs.append((model(**one).loss, model(**alone).loss))
        return pairs

    return Row(
        name=f"word2vec-{architecture}",
        model=model,
        batch=batch,
        initial_loss=(1 + negatives) * math.log(2),
        auto_class="AutoModel",
        example=some_words,
        padding=padding,
        labels=("context_ids", "context_mask", "negative_ids"),
        overfit_lr=3e-2,
    )


ROWS = [
    *(gpt(kind) for kind in ("learned", "sinusoidal", "rotary", "alibi")),
    *(rnn(cell_type) for cell_type in ("rnn", "gru", "lstm")),
    *(seq2seq(attention_type) for attention_type in ("additive", "general", "dot", "none")),
    seq2seq("general", "pre-attention", pre_attention=True),
    seq2seq_transformer(),
    bert_masked_lm(),
    bert_classification(),
    cnn("cnn"),
    cnn("cnn-whitened", whitening=True, pool_size=3, pool_blur=True),
    word2vec("skip-gram"),
    word2vec("cbow"),
    resnet("basic", stem="cifar"),
    resnet("zero-padded", stem="cifar", shortcut="zero_pad"),
    resnet("plain", stem="cifar", shortcut="none"),
    resnet("pre-activation", stem="cifar", pre_activation=True),
    resnet("bottleneck", layer_type="bottleneck", hidden_sizes=(16, 32)),
]
