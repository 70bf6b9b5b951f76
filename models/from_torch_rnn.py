"""The weights of torch.nn.RNN, GRU and LSTM into our RNN, and back.

    head = nn.Linear(512, 65, bias=False)
    model = rnn_from_torch(nn.Embedding(65, 512), nn.LSTM(512, 512, 2), head)
    embedding, recurrent, head = torch_from_rnn(model)

The two compute the same: the same outputs, the same gradients, to 1e-5 in fp32 (the tests compare
them). This file is not saved with a checkpoint; the model does not need it.
"""

import torch
from torch import nn

from .rnn import RNNConfig, RNNForCausalLM

CELL_TYPES = {nn.RNN: "rnn", nn.GRU: "gru", nn.LSTM: "lstm"}
# Ours on the left, PyTorch's on the right; {i} is the number of the layer.
LAYER_KEYS = {
    "input_proj.weight": "weight_ih_l{i}",
    "input_proj.bias": "bias_ih_l{i}",
    "hidden_proj.weight": "weight_hh_l{i}",
    "hidden_proj.bias": "bias_hh_l{i}",
}


def layer_from_torch(tensors: dict, layer: int, suffix: str = "") -> dict[str, torch.Tensor]:
    """One layer's tensors (weights, or their gradients) under the names of a `RecurrentLayer`.

    Args:
        tensors: of a torch.nn.RNN, GRU or LSTM, by their names.
        layer: its number, from 0.
        suffix: "_reverse" for the layer that reads from the end.
    """
    return {ours: tensors[theirs.format(i=layer) + suffix] for ours, theirs in LAYER_KEYS.items()}


def tensors_from_torch(embedding: dict, recurrent: dict, head: dict) -> dict[str, torch.Tensor]:
    """The tensors of the three modules (weights, or their gradients) under our names."""
    ours = {"model.embed_tokens.weight": embedding["weight"], "lm_head.weight": head["weight"]}
    for i in range(sum(name.startswith("weight_ih") for name in recurrent)):
        layer = layer_from_torch(recurrent, i)
        ours |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return ours


def rnn_from_torch(
    embedding: nn.Embedding, recurrent: nn.RNN | nn.GRU | nn.LSTM, head: nn.Linear
) -> RNNForCausalLM:
    """A language model with the weights of an embedding, a recurrent module and an output layer.

    `hidden_dropout` is that of the recurrent module (which has it between its layers only).

    Raises:
        ValueError: the modules have an option or a shape that our RNN does not have.
    """
    _check(embedding, recurrent, head)
    config = RNNConfig(
        vocab_size=embedding.num_embeddings,
        hidden_size=recurrent.hidden_size,
        num_hidden_layers=recurrent.num_layers,
        cell_type=CELL_TYPES[type(recurrent)],
        hidden_dropout=recurrent.dropout,
    )
    model = RNNForCausalLM(config).to(head.weight.dtype)
    parts = (part.state_dict() for part in (embedding, recurrent, head))
    model.load_state_dict(tensors_from_torch(*parts))
    return model.train(recurrent.training)


def torch_from_rnn(model: RNNForCausalLM) -> tuple[nn.Embedding, nn.RNNBase, nn.Linear]:
    """Embedding, recurrent module (`batch_first`) and output layer with a model's weights."""
    config = model.config
    kind = {ours: theirs for theirs, ours in CELL_TYPES.items()}[config.cell_type]
    size, layers = config.hidden_size, config.num_hidden_layers
    # PyTorch warns of dropout "between" the layers where there is but one.
    dropout = config.hidden_dropout if layers > 1 else 0.0
    parts = (
        nn.Embedding(config.vocab_size, size),
        kind(size, size, layers, batch_first=True, dropout=dropout),
        nn.Linear(size, config.vocab_size, bias=False),
    )
    embedding, recurrent, head = (part.to(model.dtype) for part in parts)
    weights = model.state_dict()
    embedding.load_state_dict({"weight": weights["model.embed_tokens.weight"]})
    head.load_state_dict({"weight": weights["lm_head.weight"]})
    recurrent.load_state_dict(
        {
            theirs.format(i=i): weights[f"model.layers.{i}.{ours}"]
            for i in range(layers)
            for ours, theirs in LAYER_KEYS.items()
        }
    )
    return tuple(part.train(model.training) for part in (embedding, recurrent, head))


def _check(embedding, recurrent, head) -> None:
    if type(recurrent) not in CELL_TYPES:
        names = ", ".join(f"torch.nn.{kind.__name__}" for kind in CELL_TYPES)
        raise ValueError(f"{type(recurrent).__name__} is none of {names}")
    wanted = {"bias": True, "bidirectional": False, "proj_size": 0}
    if isinstance(recurrent, nn.RNN):
        wanted["nonlinearity"] = "tanh"
    wanted["input_size"] = recurrent.hidden_size
    for name, value in wanted.items():
        if (found := getattr(recurrent, name)) != value:
            raise ValueError(
                f"this {type(recurrent).__name__} has {name}={found}, which our RNN cannot do; "
                f"only one with {name}={value} can be taken over"
            )
    size = recurrent.hidden_size
    for part, name, found, value in (
        ("embedding", "embedding_dim", embedding.embedding_dim, size),
        ("embedding", "padding_idx", embedding.padding_idx, None),
        ("embedding", "max_norm", embedding.max_norm, None),
        ("embedding", "scale_grad_by_freq", embedding.scale_grad_by_freq, False),
        ("output layer", "in_features", head.in_features, size),
        ("output layer", "out_features", head.out_features, embedding.num_embeddings),
    ):
        if found != value:
            raise ValueError(f"the {part} has {name}={found}, where our RNN needs {name}={value}")
    if head.bias is not None:
        raise ValueError("the output layer has a bias, which ours has not: take bias=False")
