"""Our BERT beside transformers': a training step that fills in blanks.

    python benchmarks/bert.py    # flags as of train/bert.py for another shape; --rounds

The same shape (that of configs/bert.yaml), weights, batch, mixed precision and fused AdamW, in one
run, taking turns so that a slow minute hits all. In training, ours scores only the hidden tokens,
the config's `blank_share` of all, since the loss asks for no others; transformers' BertForMaskedLM
scores every token of the batch. So that class is measured as it is, and as one would write a step
of it by hand that is as sparing ("hidden tokens only"): what then remains is the encoder. Each with
the attention that `from_pretrained` gives it (SDPA) and with the eager one, which is faster for
texts of this length.
Writes results/benchmarks/bert.json.
"""

import copy
import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from side_by_side import PRECISION, autocast, large_product, profile, take_turns, write
from torch.utils.flop_counter import FlopCounterMode

from groundup.data_scripts.masking import MaskedBlocks, Specials
from groundup.models.bert import BERTConfig, BERTForMaskedLM
from groundup.models.from_bert import transformers_from_bert
from groundup.train import bert, recipe


@dataclass
class BenchmarkArguments:
    """How long to measure."""

    rounds: int = field(default=21, metadata={"help": "Steps of each, of which the median."})


def random_batch(config: BERTConfig, batch: int, share: float) -> dict[str, torch.Tensor]:
    """Blocks of any words with blanks, (batch, time); that share is to be guessed."""
    specials = Specials(cls=2, sep=3, mask=4, first_word=5, vocab_size=config.vocab_size)
    time = config.max_position_embeddings
    ids = np.random.default_rng(0).integers(5, config.vocab_size, batch * (time - 2))
    blocks = MaskedBlocks(ids, specials, time, seed=0, blank_share=share)
    items = blocks.__getitems__(range(batch))
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def own_loss(model, input_ids, labels):
    """As the model's own forward gives it."""
    return model(input_ids=input_ids, labels=labels).loss


def sparing_loss(model, input_ids, labels):
    """Of transformers' BERT, whose head here sees only the hidden tokens."""
    hidden = labels != -100
    states = model.bert(input_ids).last_hidden_state[hidden]
    return torch.nn.functional.cross_entropy(model.cls(states).float(), labels[hidden])


def candidates(config: BERTConfig) -> dict[str, tuple]:
    """(model, loss) of each, all with the same weights; in training mode, as new models are."""
    torch.manual_seed(0)
    ours = BERTForMaskedLM(config)
    reference, found = transformers_from_bert(ours), {"groundup": (ours, own_loss)}
    for name, attention in (("BERT", "sdpa"), ("BERT, eager attention", "eager")):
        for more, loss in (("", own_loss), (", hidden tokens only", sparing_loss)):
            model = copy.deepcopy(reference)
            model.set_attn_implementation(attention)
            found[name + more] = (model, loss)
    return found


def losses(models: dict[str, tuple], batch: dict) -> dict[str, float]:
    """Before training, of each: the same.

    Raises:
        RuntimeError: they are not, so that there is nothing to compare.
    """
    with torch.no_grad():
        found = {name: loss(model, **batch).item() for name, (model, loss) in models.items()}
    if max(found.values()) - min(found.values()) > 1e-4:
        raise RuntimeError(f"the models differ: {found}")
    return found


def trainer(model, loss, batch, args):
    """A training step: forward, backward, fused AdamW; mixed precision."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, fused=True)

    def step():
        with autocast():
            value = loss(model, **batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(argv=None) -> None:
    """Measures all and writes the figures."""
    _, benchmark_args, task_args, model_args, args = recipe.parse_arguments(
        argv,
        "bert",
        BenchmarkArguments,
        bert.TaskArguments,
        bert.ModelArguments,
        description=__doc__,
    )
    config = BERTConfig(vocab_size=task_args.tokenizer_vocab_size, **asdict(model_args))
    batch = random_batch(config, args.per_device_train_batch_size, task_args.blank_share)
    models = candidates(config)
    before = losses(models, batch)
    steps = {name: trainer(*pair, batch, args) for name, pair in models.items()}
    seconds = take_turns(steps, benchmark_args.rounds)
    with FlopCounterMode(display=False) as counter:
        own_loss(models["groundup"][0], **batch).backward()
    flops, limit = counter.get_total_flops(), large_product()
    tokens, ours = batch["input_ids"].numel(), seconds["groundup"]
    content = {
        "shape": {**asdict(model_args), "vocab_size": config.vocab_size},
        "batch": list(batch["input_ids"].shape),
        "hidden_tokens": int((batch["labels"] != -100).sum()),
        "loss_before": before["groundup"],
        "training_tokens_per_second": {name: tokens / value for name, value in seconds.items()},
        "ratios": {
            name: v / seconds["groundup"] for name, v in seconds.items() if name != "groundup"
        },
        "precision": PRECISION,
        "flops_of_large_product": limit,
        "share_of_that_in_training": flops / ours / limit,
        "profile_of_a_step": profile(steps["groundup"]),
    }
    print(json.dumps(content, indent=1))
    write("bert", content)


if __name__ == "__main__":
    main()
