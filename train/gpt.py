"""Trains a GPT: a language model over characters or sub-words.

    accelerate launch -q train/gpt.py                                # Tiny GPT on Shakespeare
    accelerate launch -q train/gpt.py --text my_book.txt --output_dir runs/my_book
    accelerate launch -q train/gpt.py --tokenizer bpe --tokenizer_vocab_size 1024 \\
        --output_dir runs/gpt_bpe
    accelerate launch -q train/gpt.py --config configs/gpt_dickens.yaml   # LoRA: on to Dickens
    accelerate launch -q train/gpt.py --text corpus/ --streaming --tokenizer bpe \\
        --tokenizer_vocab_size 8192 --output_dir runs/corpus             # more than fits in memory
    accelerate launch -q train/gpt.py --evaluate_only                # score the model in runs/gpt
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import DatasetDict, IterableDataset
from transformers import AutoModelForCausalLM, set_seed

from groundup.data_scripts.sources import describe
from groundup.data_scripts.streaming import PackedStream, open_stream
from groundup.data_scripts.tokenization import (
    TokenBlocks,
    add_characters,
    encode_documents,
    load_tokenizer,
    loses_characters,
)
from groundup.models.gpt import GPTConfig, GPTForCausalLM
from groundup.train import adapters, language, recipe, report
from groundup.train.language import SCORE
from groundup.train.metrics import LanguageModelLoss, block_losses
from groundup.train.publishing import publish
from groundup.train.writing import NoEpochs, Sample

STREAM_NEEDS_BYTES = (
    "a streamed text has characters that its beginning has not, and a tokenizer of characters "
    "would lose them: take one over bytes (--tokenizer bpe or unigram, or a base model with one)"
)
ModelArguments = recipe.model_arguments(GPTConfig, leave_out=["vocab_size"])


@dataclass
class DataArguments(language.TextArguments):
    """The text, and how it becomes tokens."""

    streaming: bool = field(
        default=False,
        metadata={"help": "Stream it: text, JSON lines, Parquet, a Hub name."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub data set."}
    )
    validation_documents: int = field(
        default=100, metadata={"help": "The first, which streaming holds out."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.streaming and self.text is None:
            raise ValueError("--streaming needs --text: files, a folder, or a data set on the Hub")


def load_data(arguments: DataArguments) -> tuple[DatasetDict, dict, IterableDataset | None]:
    """What is read at once, what is known about it, and the rest, if there is a rest.

    Returns:
        Splits train and validation of documents (column `text`); their description; and where the
        text is streamed, the stream to train on. Then train is only its beginning, for a tokenizer
        to be made from.
    """
    if arguments.streaming:
        stream, dataset, description = open_stream(
            arguments.text, arguments.dataset_config_name, arguments.validation_documents
        )
        return dataset, description, stream
    if Path(arguments.text or "").suffix in (".json", ".jsonl", ".parquet"):
        raise ValueError(f"{arguments.text} is no plain text: add --streaming to read it")
    dataset = language.load_dataset(arguments)
    return dataset, describe(dataset), None


def make_tokenizer(data_args, tune_args, texts: list[str]):
    """The tokenizer asked for, or the base model's; and the ids that the base model lacks."""
    if tune_args.base_model:
        tokenizer = load_tokenizer(tune_args.base_model)
        new_tokens = add_characters(tokenizer, texts)
        if new_tokens:
            print(f"{len(new_tokens)} characters are new to {tune_args.base_model}")
        return tokenizer, new_tokens
    return language.make_tokenizer(data_args, texts), []


def make_model(model_args, tune_args, tokenizer, new_tokens: list[int]):
    """A model with random weights, or a trained one that knows the new tokens and may have LoRA."""
    if not tune_args.base_model:
        return new_model(model_args, tokenizer)
    model = adapters.load_base_model(tune_args.base_model, model_args)
    if new_tokens:
        model.resize_token_embeddings(len(tokenizer))
    if tune_args.lora_rank:
        model = adapters.add_lora(model, tune_args.lora_rank, new_tokens)
    return model


def new_model(model_args, tokenizer) -> GPTForCausalLM:
    """A model with random weights, of the shape that the arguments give."""
    return GPTForCausalLM(GPTConfig(**language.token_settings(tokenizer), **asdict(model_args)))


def check_choices(data_args, tune_args, args) -> None:
    """Raises ValueError for flags that do not go together."""
    if data_args.streaming and data_args.tokenizer == "characters" and not tune_args.base_model:
        raise ValueError(STREAM_NEEDS_BYTES)
    for flag in sorted({"tokenizer", "tokenizer_vocab_size"} & args.chosen):
        if tune_args.base_model:
            raise ValueError(
                f"{tune_args.base_model} has a tokenizer of its own: leave out --{flag}"
            )
    adapters.check_optimizer(tune_args, args)


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, data_args, model_args, tune_args, args = recipe.parse_arguments(
        argv,
        "gpt",
        DataArguments,
        ModelArguments,
        adapters.FineTuneArguments,
        description="Trains a GPT.",
    )
    output_dir = Path(args.output_dir)
    if args.max_steps < 1:
        raise ValueError(
            "set --max_steps, how many updates to make: blocks overlap, so that a "
            "pass over all of them would be hundreds of passes over the text"
        )
    recipe.check_folder(args, GPTConfig)
    check_choices(data_args, tune_args, args)
    base, base_content = tune_args.base_model, None
    if base and not args.evaluate_only:
        base_content = adapters.check_base_model(base, GPTForCausalLM, model_args, args.chosen)
    set_seed(args.seed)

    # 2. Data
    dataset, data, stream = load_data(data_args)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, data)
    else:
        settings = recipe.settings_of(args, data_args, model_args, tune_args, data=data)
        if base:
            settings["base_model_content"] = base_content
        checkpoint = recipe.prepare_folder(args, settings)
    texts = {name: split["text"] for name, split in dataset.items()}
    if args.evaluate_only:
        tokenizer = load_tokenizer(str(output_dir))
    else:
        tokenizer, new_tokens = make_tokenizer(data_args, tune_args, texts["train"])
    if stream is not None:
        if loses_characters(tokenizer):
            raise ValueError(STREAM_NEEDS_BYTES)
        del texts["train"]  # which the tokenizer was made from; the stream begins with it
    tokens = {name: encode_documents(tokenizer, split) for name, split in texts.items()}
    to_train_on = "a stream of" if stream is not None else f"{len(tokens['train']):,}"
    print(
        f"{data['source']}: {to_train_on} tokens to train on, "
        f"{len(tokens['validation']):,} to validate; vocabulary {len(tokenizer):,}"
    )

    # 3. Model
    if args.evaluate_only:
        model = recipe.load_trained(AutoModelForCausalLM, output_dir, model_args)
    else:
        model = make_model(model_args, tune_args, tokenizer, new_tokens)
    block_size = model.config.max_position_embeddings

    # 4. Fit
    metric, characters = LanguageModelLoss(), sum(map(len, texts["validation"]))
    train_blocks = None
    if stream is not None and not args.evaluate_only:
        share = (args.process_index, args.world_size)
        train_blocks = PackedStream(stream, tokenizer, block_size, args.seed, *share)
    elif not args.evaluate_only:
        train_blocks = TokenBlocks.for_training(tokens["train"], block_size)
    trainer = recipe.RunTrainer(
        model,
        args,
        train_dataset=train_blocks,
        eval_dataset=TokenBlocks.for_evaluation(tokens["validation"], block_size),
        processing_class=tokenizer,
        preprocess_logits_for_metrics=block_losses,
        compute_metrics=lambda out: metric.compute(
            predictions=out.predictions[:, 0],
            references=out.predictions[:, 1].astype(int),
            characters=characters,
        ),
        callbacks=[Sample(tokenizer, data_args.prompt), NoEpochs()],
    )
    if not args.evaluate_only:
        adapters.check_sharding(tune_args, trainer)
        trained = model.num_parameters(only_trainable=True)
        print(f"{trained:,} parameters to train; blocks of {block_size} tokens")
        before = trainer.evaluate() if base else None
        trainer.train(checkpoint)
    scores = trainer.scores()

    # 5. Report
    metrics = {k: scores[k] for k in (SCORE, "bits_per_character", "nats_per_token")}
    if not args.evaluate_only and base:
        metrics |= {f"{SCORE}_before": before[f"eval_{SCORE}"], "trained_parameters": trained}
    run = report.run_metrics("gpt", config_name, args, metrics, data, trainer.stopwatch.seconds)
    model = trainer.whole_model()
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            log = trainer.state.log_history
            write_report(output_dir, run, model, log, tokenizer, data_args, tune_args)
        print(f"validation loss: {metrics[SCORE]:.4f} nats per character")
        if args.publish:
            publish(args)
    return run


def write_report(
    output_dir: Path, run: dict, model, log: list, tokenizer, data_args, tune_args
) -> None:
    """The model folder: weights, code, tokenizer, loss curve, card, and last metrics.json.

    What LoRA has learned is kept as an adapter, and added to the weights of the model.
    """
    if tune_args.lora_rank:
        adapters.save_adapter(model, tokenizer, output_dir)
        model = model.merge_and_unload()
    config, base = model.config, tune_args.base_model
    language.write_report(
        output_dir,
        run,
        model,
        log,
        tokenizer,
        data_args,
        kind="GPT",
        about=f"A GPT of {model.num_parameters():,} parameters: "
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, "
        f"{config.position_embedding_type} positions, blocks of "
        f"{config.max_position_embeddings} tokens, a vocabulary of {config.vocab_size:,}. "
        "It continues a text, one token after the other."
        + (fine_tuning(run, tune_args) if base else ""),
        training="The loss is taken over the whole validation split, in blocks of the model's "
        "context, each character scored once.",
        base_model=base if base and not Path(base).exists() else None,
    )
    report.finish(output_dir, run)


def fine_tuning(run: dict, tune_args) -> str:
    """What the card says of where the model comes from."""
    metrics, rank = run["metrics"], tune_args.lora_rank
    base = Path(tune_args.base_model).name
    how = "all weights"
    if rank:
        how = f"LoRA of rank {rank} (alone in `adapter/`, for PEFT, beside its base model)"
    return (
        f"\n\nIt began as `{base}` and was trained further on {run['data']['name']}: {how}, "
        f"{metrics['trained_parameters']:,} parameters. The loss there went from "
        f"{metrics[f'{SCORE}_before']:.4f} to {metrics[SCORE]:.4f}."
    )


if __name__ == "__main__":
    main()
