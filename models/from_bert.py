"""BERT's weights into our BERT, and back.

    model = bert_from_transformers("google/bert_uncased_L-2_H-128_A-2")  # id, folder or the model
    transformers_from_bert(model).save_pretrained("as-bert")   # for tools that know only BERT

The two compute the same: the same outputs, the same gradients, to 1e-5 in fp32 (the tests compare
them). This file is not saved with a checkpoint; the model does not need it.
"""

import os

import torch
import transformers
from transformers import BertConfig, PreTrainedModel

from .bert import BERTConfig, BERTForMaskedLM, BERTForSequenceClassification

# Ours on the left, BERT's on the right; {i} is the number of the layer.
KEYS = {
    "bert.embeddings.embed_tokens": "bert.embeddings.word_embeddings",
    "bert.embeddings.embed_positions": "bert.embeddings.position_embeddings",
    "bert.embeddings.embed_segments": "bert.embeddings.token_type_embeddings",
    "bert.embeddings.norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
    "classifier": "classifier",
}
LAYER_KEYS = {
    "bert.layers.{i}.attention.q_proj": "bert.encoder.layer.{i}.attention.self.query",
    "bert.layers.{i}.attention.k_proj": "bert.encoder.layer.{i}.attention.self.key",
    "bert.layers.{i}.attention.v_proj": "bert.encoder.layer.{i}.attention.self.value",
    "bert.layers.{i}.attention.o_proj": "bert.encoder.layer.{i}.attention.output.dense",
    "bert.layers.{i}.attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "bert.layers.{i}.mlp.up_proj": "bert.encoder.layer.{i}.intermediate.dense",
    "bert.layers.{i}.mlp.down_proj": "bert.encoder.layer.{i}.output.dense",
    "bert.layers.{i}.mlp_norm": "bert.encoder.layer.{i}.output.LayerNorm",
}
# The output layer's bias has two names there, the first of which counts where they are not tied.
BIAS, ITS_NAMES = "head.bias", ("cls.predictions.decoder.bias", "cls.predictions.bias")

CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "pad_token_id": "pad_token_id",
    "id2label": "id2label",
    "label2id": "label2id",
}
CLASSES = {
    "BertForMaskedLM": BERTForMaskedLM,
    "BertForSequenceClassification": BERTForSequenceClassification,
}


def bert_from_transformers(
    reference: PreTrainedModel | str | os.PathLike, task: str = "BertForMaskedLM"
) -> PreTrainedModel:
    """A BERT of ours with the weights of a BERT, in the same dtype and mode.

    Args:
        reference: the model, or where `from_pretrained` finds it; safetensors only.
        task: transformers' class to load it as; one of `CLASSES`.

    Raises:
        ValueError: it is of no class that ours has, or uses an option that ours does not have.
    """
    if not isinstance(reference, PreTrainedModel):
        _check_class(task)
        reference = getattr(transformers, task).from_pretrained(reference, use_safetensors=True)
    _check_class(type(reference).__name__)
    if reference.config.is_decoder or reference.config.add_cross_attention:
        raise ValueError("this BERT is a decoder, which ours is not: it reads from both sides")
    if reference.config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"this BERT is for {reference.config.problem_type}; ours gives each text one class"
        )
    if reference.config.classifier_dropout not in (None, reference.config.hidden_dropout_prob):
        raise ValueError(
            f"this BERT has a classifier_dropout of {reference.config.classifier_dropout}; ours "
            f"has one hidden_dropout for all: set classifier_dropout to None first"
        )
    values = {ours: getattr(reference.config, theirs) for ours, theirs in CONFIG_KEYS.items()}
    model = CLASSES[type(reference).__name__](BERTConfig(**values)).to(reference.dtype)
    model.load_state_dict(tensors_from_transformers(reference.state_dict()))
    return model.train(reference.training)


def transformers_from_bert(model: PreTrainedModel) -> PreTrainedModel:
    """The inverse: transformers' own class with our weights, in the same dtype and mode.

    Raises:
        ValueError: the model is none of ours that `bert_from_transformers` gives.
    """
    names = {ours: theirs for theirs, ours in CLASSES.items()}
    if type(model) not in names:
        raise ValueError(
            f"{type(model).__name__} cannot be given back: "
            f"{' or '.join(ours.__name__ for ours in names)} can"
        )
    values = {theirs: getattr(model.config, ours) for ours, theirs in CONFIG_KEYS.items()}
    reference = getattr(transformers, names[type(model)])(BertConfig(**values)).to(model.dtype)
    reference.load_state_dict(tensors_to_transformers(model.state_dict()))
    return reference.train(model.training)


def _check_class(name: str) -> None:
    if name not in CLASSES:
        raise ValueError(f"{name} cannot be taken over: {' or '.join(CLASSES)} can")


def tensors_from_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BERT's tensors under our names: weights, or their gradients."""
    return {ours: tensors[theirs] for ours, theirs in _names(tensors)}


def tensors_to_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `tensors_from_transformers`."""
    reference = {theirs: tensors[ours] for ours, theirs in _names(tensors)}
    if BIAS in tensors:
        reference |= dict.fromkeys(ITS_NAMES, tensors[BIAS])
    return reference


def _names(tensors: dict):
    """(our name, BERT's name) of each tensor; `tensors` may be of either side."""
    pairs = list(KEYS.items())
    for i in range(_number_of_layers(tensors)):
        pairs += [(ours.format(i=i), theirs.format(i=i)) for ours, theirs in LAYER_KEYS.items()]
    for ours, theirs in pairs:
        for end in (".weight", ".bias"):
            named = ours + end in tensors or theirs + end in tensors
            if named and theirs + end not in ITS_NAMES:
                yield ours + end, theirs + end
    biases = [name for name in ITS_NAMES if name in tensors]
    if biases or BIAS in tensors:
        yield BIAS, (biases or ITS_NAMES)[0]


def _number_of_layers(tensors: dict) -> int:
    prefixes = {"bert.layers.": 2, "bert.encoder.layer.": 3}
    numbers = [
        int(name.split(".")[place])
        for name in tensors
        for prefix, place in prefixes.items()
        if name.startswith(prefix)
    ]
    return max(numbers, default=-1) + 1
