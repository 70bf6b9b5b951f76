"""Trains a recurrent network: a language model that carries a state along the text.

    accelerate launch -q train/rnn.py                                # an LSTM on Shakespeare
    accelerate launch -q train/rnn.py --config configs/rnn_gru.yaml  # a GRU; rnn_vanilla: plain
    accelerate launch -q train/rnn.py --text my_book.txt --output_dir runs/my_book
    accelerate launch -q train/rnn.py --evaluate_only                # score the model in runs/rnn

The text is read by as many streams as a batch has rows, each going on where it stopped.
"""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, default_data_collator, set_seed

from groundup.data_scripts.carried import CarriedBlocks, CarriedStream
from groundup.data_scripts.sources import describe
from groundup.data_scripts.tokenization import encode_documents, load_tokenizer
from groundup.models.recurrent import CELLS, RecurrentState
from groundup.models.rnn import RNNConfig, RNNForCausalLM
from groundup.train import language, machine, recipe, report
from groundup.train.language import SCORE
from groundup.train.metrics import LanguageModelLoss, label_losses
from groundup.train.publishing import publish
from groundup.train.writing import NoEpochs, Sample

CELL_NAMES = {"rnn": "plain RNN", "gru": "GRU", "lstm": "LSTM"}
# Of the figure of gradients: how far back, and over how many texts.
GRADIENT_STEPS, GRADIENT_TEXTS = 100, 32
ModelArguments = recipe.model_arguments(RNNConfig, leave_out=["vocab_size"])


@dataclass
class DataArguments(language.TextArguments):
    """The text, and how it becomes tokens and blocks."""

    block_size: int = field(
        default=64,
        metadata={"help": "Tokens of a block, through which gradients are followed back."},
    )


class CarryTrainer(recipe.RunTrainer):
    """Hands the state after each block on to the next: truncated backpropagation through time.

    Training and evaluation have a state each. That of training is part of a checkpoint, one file a
    process, so that a resumed run goes on to the same bits.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=default_data_collator, **kwargs)
        self.label_names = ["shift_labels"]
        self.args.remove_unused_columns = False  # `begins` is for us, not for the model
        self.carried = {"training": None, "evaluation": None}

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Trainer's own, of a model that is given the state that it left."""
        which = "training" if model.training else "evaluation"
        blocks = {name: tensor for name, tensor in inputs.items() if name != "begins"}
        blocks["past_key_values"] = None if inputs["begins"].any() else self.carried[which]
        loss, outputs = super().compute_loss(
            model, {**blocks, "use_cache": True}, return_outputs=True, **kwargs
        )
        self.carried[which] = outputs["past_key_values"].detach()
        return (loss, outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs):
        """Trains, from a checkpoint with its state or from the start."""
        if resume_from_checkpoint is not None:
            parts = CELLS[self.model.config.cell_type].num_states
            tensors = load_file(resume_from_checkpoint / self._state_file, str(self.args.device))
            layers = [
                tuple(tensors[f"{layer}.{part}"] for part in range(parts))
                for layer in range(self.model.config.num_hidden_layers)
            ]
            self.carried["training"] = RecurrentState(layers, int(tensors["seen_tokens"]))
        return super().train(resume_from_checkpoint, **kwargs)

    def _save_rng_state(self, output_dir):
        # Every process comes by here, before the checkpoint is sealed.
        super()._save_rng_state(output_dir)
        state = self.carried["training"]
        tensors = {
            f"{i}.{j}": part.contiguous()
            for i, layer in enumerate(state.layers)
            for j, part in enumerate(layer)
        }
        tensors["seen_tokens"] = torch.tensor(state.seen_tokens)
        save_file(tensors, Path(output_dir) / self._state_file)

    @property
    def _state_file(self) -> str:
        return f"state_{self.args.process_index}.safetensors"


def gradient_norms(model, ids: np.ndarray) -> list[float]:
    """How much a loss is felt by what the network carried before: the vanishing gradient.

    Of the loss at T, the norm of its gradient by the whole state (h of all layers; of an LSTM also
    c) that went into position T, T - 1, ...: the mean over some texts. The model reads one token
    after the other, so that each state is a tensor to ask for. All is done in fp64: what fades to
    1e-30 has squares that fp32 takes for 0.

    Args:
        ids: (tokens,), from which the texts are taken at equal distances.

    Returns:
        One number for each distance, 1 to `GRADIENT_STEPS` or what the text allows: none for fewer
        than three tokens.
    """
    steps = min(GRADIENT_STEPS + 1, len(ids) - 1)
    if steps < 2:
        return []
    model = copy.deepcopy(model).cpu().double().eval()  # not every GPU has fp64
    starts = np.linspace(0, len(ids) - steps - 1, GRADIENT_TEXTS).astype(int)
    texts = np.stack([ids[start : start + steps + 1] for start in starts]).astype(np.int64)
    texts = torch.from_numpy(texts)  # (texts, steps + 1)
    state, states = None, []
    for t in range(steps):
        outputs = model(texts[:, t : t + 1], past_key_values=state, use_cache=True)
        state = outputs.past_key_values
        states.append([part for layer in state.layers for part in layer])
    # A sum: no text has a part in another's loss, so each row of a gradient is that text's own.
    loss = torch.nn.functional.cross_entropy(outputs.logits[:, -1], texts[:, -1], reduction="sum")
    carried = states[:-1]  # the last goes nowhere
    parts = [part for state in carried for part in state]
    gradients = iter(torch.autograd.grad(loss, parts))
    norms = [torch.cat([next(gradients) for _ in state], -1).norm(dim=-1) for state in carried]
    return [norm.mean().item() for norm in reversed(norms)]


def plot_gradients(path: Path, curves: dict[str, list[float]]) -> None:
    """Gradient norms over the distance: what it is called -> `gradient_norms`.

    A name that begins with "new" is drawn dashed, in the colour of its cell.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, norms in curves.items():
        color = next(f"C{i}" for i, cell in enumerate(CELL_NAMES.values()) if cell in name)
        style = "--" if name.startswith("new") else "-"
        axes.plot(range(1, len(norms) + 1), norms, style, color=color, label=name)
    axes.set(
        yscale="log",
        xlabel="distance T - t, tokens",
        ylabel="norm of dLoss(T) / dstate(t)",
    )
    axes.set_ylim(bottom=1e-30)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def gradient_curves(model, ids: np.ndarray, seed: int) -> dict[str, list[float]]:
    """The three cells with new weights, in the model's shape, and the trained model.

    None of them where the text is too short for `gradient_norms`.
    """
    curves = {}
    with torch.random.fork_rng():
        for cell_type, name in CELL_NAMES.items():
            torch.manual_seed(seed)
            config = RNNConfig(**{**model.config.to_dict(), "cell_type": cell_type})
            curves[f"new {name}"] = gradient_norms(RNNForCausalLM(config), ids)
    curves[f"this {CELL_NAMES[model.config.cell_type]}"] = gradient_norms(model, ids)
    return {name: norms for name, norms in curves.items() if norms}


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, data_args, model_args, args = recipe.parse_arguments(
        argv, "rnn", DataArguments, ModelArguments, description="Trains a recurrent network."
    )
    output_dir = Path(args.output_dir)
    if args.max_steps < 1:
        raise ValueError("set --max_steps, how many updates to make: a text goes on as a ring")
    recipe.check_folder(args, RNNConfig)
    set_seed(args.seed)

    # 2. Data
    dataset = language.load_dataset(data_args)
    data, checkpoint = describe(dataset), None
    if args.evaluate_only:
        recipe.note_other_data(args, data)
    else:
        settings = recipe.settings_of(args, data_args, model_args, data=data)
        checkpoint = recipe.prepare_folder(args, settings)
    texts = {name: split["text"] for name, split in dataset.items()}
    if args.evaluate_only:
        tokenizer = load_tokenizer(str(output_dir))
    else:
        tokenizer = language.make_tokenizer(data_args, texts["train"])
    tokens = {name: encode_documents(tokenizer, split) for name, split in texts.items()}
    print(
        f"{data['source']}: {len(tokens['train']):,} tokens to train on, "
        f"{len(tokens['validation']):,} to validate; vocabulary {len(tokenizer):,}"
    )

    # 3. Model
    if args.evaluate_only:
        model = AutoModelForCausalLM.from_pretrained(output_dir, dtype=torch.float32)
    else:
        config = RNNConfig(**language.token_settings(tokenizer), **asdict(model_args))
        machine.check_memory(config.num_parameters)
        model = RNNForCausalLM(config)

    # 4. Fit
    metric, characters = LanguageModelLoss(), sum(map(len, texts["validation"]))
    block_size, train_blocks = data_args.block_size, None
    if not args.evaluate_only:
        share = (args.process_index, args.world_size)
        batch_size = args.train_batch_size
        train_blocks = CarriedStream(tokens["train"], block_size, batch_size, args.seed, *share)
    trainer = CarryTrainer(
        model,
        args,
        train_dataset=train_blocks,
        eval_dataset=CarriedBlocks(
            tokens["validation"], block_size, args.eval_batch_size * args.world_size
        ),
        processing_class=tokenizer,
        preprocess_logits_for_metrics=label_losses,
        compute_metrics=lambda out: metric.compute(
            predictions=out.predictions[:, 0],
            references=out.predictions[:, 1].astype(int),
            characters=characters,
        ),
        callbacks=[Sample(tokenizer, data_args.prompt), NoEpochs()],
    )
    if not args.evaluate_only:
        print(f"{model.num_parameters():,} parameters to train; blocks of {block_size} tokens")
        trainer.train(checkpoint)
    scores = trainer.scores()

    # 5. Report
    metrics = {k: scores[k] for k in (SCORE, "bits_per_character", "nats_per_token")}
    run = report.run_metrics("rnn", config_name, args, metrics, data, trainer.stopwatch.seconds)
    model = trainer.whole_model()
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            curves = gradient_curves(model, tokens["validation"], args.seed)
            log = trainer.state.log_history
            write_report(output_dir, run, model, log, tokenizer, data_args, curves)
        print(f"validation loss: {metrics[SCORE]:.4f} nats per character")
        if args.publish:
            publish(args)
    return run


def write_report(output_dir, run: dict, model, log: list, tokenizer, data_args, curves) -> None:
    """The model folder: weights, code, tokenizer, figures, card, and last metrics.json."""
    config = model.config
    name = CELL_NAMES[config.cell_type]
    language.write_report(
        output_dir,
        run,
        model,
        log,
        tokenizer,
        data_args,
        kind="RNN",
        about=f"A recurrent network of {model.num_parameters():,} parameters: "
        f"{config.num_hidden_layers} layers of {config.hidden_size} cells ({name}), a vocabulary "
        f"of {config.vocab_size:,}. It continues a text, one token after the other, and carries a "
        f"state of fixed size.",
        training="The loss is taken over the whole validation split. It is read in several streams "
        "side by side, each from a fresh state on; the state is carried from block to block, and "
        "each character is scored once. Training follows gradients back through blocks of "
        f"{data_args.block_size} tokens.{about_gradients(curves)}",
    )
    if curves:
        plot_gradients(output_dir / "figures" / "gradients.png", curves)
    report.finish(output_dir, run)


def about_gradients(curves: dict[str, list[float]]) -> str:
    """What the card says of `gradient_curves`, with their figure; nothing where there are none."""
    if not curves:
        return ""
    distance = len(next(iter(curves.values())))
    faded = "; ".join(
        f"{curve} {norms[-1] / norms[0]:.1e}" for curve, norms in curves.items() if norms[0] > 0
    )
    return (
        "\n\n![gradients](figures/gradients.png)\n\n"
        "How much the loss at one position is felt by the state that the network carried so many "
        "tokens before. The further it fades, the less can be learned over that distance. "
        '"New" networks are untrained: their matrix U, from one state to the next, is drawn small, '
        "so that gradients fade fast; the LSTM's forget gate starts with a bias of 1, and keeps "
        f"more. What is left over {distance} tokens: {faded}."
    )


if __name__ == "__main__":
    main()
