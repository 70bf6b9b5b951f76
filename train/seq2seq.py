"""Trains seq2seq: one network reads a sentence, another writes its translation.

    accelerate launch -q train/seq2seq.py                           # German to English, Multi30k
    accelerate launch -q train/seq2seq.py --attention_type none --output_dir runs/no_attention
    accelerate launch -q train/seq2seq.py --source_language en --target_language fr \\
        --output_dir runs/en_fr
    accelerate launch -q train/seq2seq.py --evaluate_only           # score runs/seq2seq

Both languages share one vocabulary of byte-level BPE. BLEU is sacrebleu's, on text as it is.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, set_seed

from groundup.data_scripts.multi30k import load_multi30k
from groundup.data_scripts.sources import describe
from groundup.data_scripts.tokenization import load_tokenizer, train_tokenizer
from groundup.models.seq2seq import Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.train import recipe, report
from groundup.train.language import token_settings
from groundup.train.metrics import BLEU, BLEU_SIGNATURE
from groundup.train.publishing import publish

SCORE = "bleu"
WRITE_BATCH = 50
USAGE = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

path = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=True)
inputs = tokenizer(["{example}"], return_tensors="pt")
written = model.generate(**inputs, num_beams=4, max_new_tokens=60)
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""
ModelArguments = recipe.model_arguments(
    Seq2SeqConfig, leave_out=["vocab_size", "is_encoder_decoder"]
)


@dataclass
class PairArguments:
    """The sentences, and how they become tokens."""

    source_language: str = field(default="de", metadata={"help": "de, en or fr."})
    target_language: str = field(default="en", metadata={"help": "de, en or fr."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds the data set's files."}
    )
    tokenizer_vocab_size: int = field(default=6000, metadata={"help": "Number of tokens."})
    split: str = field(
        default="test",
        metadata={"help": "Sentences to score on: validation, to choose settings by, or test."},
    )
    num_beams: int = field(default=4, metadata={"help": "Translations to keep in view; 1: greedy."})
    max_new_tokens: int = field(
        default=80, metadata={"help": "The longest translation, in tokens."}
    )

    def __post_init__(self):
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split {self.split} is unknown: give validation or test")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")


def make_tokenizer(dataset: DatasetDict, vocab_size: int):
    """One tokenizer for both languages, which pads on the right."""
    texts = [text for column in ("source", "target") for text in dataset["train"][column]]
    tokenizer = train_tokenizer("bpe", ["\n".join(texts)], vocab_size)
    tokenizer.padding_side = "right"
    return tokenizer


def encode_pairs(tokenizer, dataset: DatasetDict) -> DatasetDict:
    """Sources as `input_ids`, targets as `labels`, each with an end."""

    end = [tokenizer.eos_token_id]

    def encode(texts) -> list[list[int]]:
        return [ids + end for ids in tokenizer(list(texts)).input_ids]

    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"input_ids": encode(rows["source"]), "labels": encode(rows["target"])}
            )
            for split, rows in dataset.items()
        }
    )


@torch.no_grad()
def translate(model, tokenizer, sources: list[str], arguments: PairArguments) -> list[str]:
    """What the model writes for each source, by beam search, in their order."""
    was_training = model.training
    model.eval()
    written: dict[int, str] = {}
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # little padding
    for start in range(0, len(order), WRITE_BATCH):
        some = order[start : start + WRITE_BATCH]
        ends = [f"{sources[i]}{tokenizer.eos_token}" for i in some]
        inputs = tokenizer(ends, return_tensors="pt", padding=True).to(model.device)
        ids = model.generate(
            **inputs,
            num_beams=arguments.num_beams,
            max_new_tokens=arguments.max_new_tokens,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        written |= {i: text.strip() for i, text in zip(some, texts, strict=True)}
    model.train(was_training)
    return [written[i] for i in range(len(sources))]


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, pair_args, model_args, args = recipe.parse_arguments(
        argv, "seq2seq", PairArguments, ModelArguments, description="Trains seq2seq."
    )
    output_dir = Path(args.output_dir)
    recipe.check_scorable(args)
    set_seed(args.seed)

    # 2. Data
    languages = (pair_args.source_language, pair_args.target_language)
    dataset = load_multi30k(*languages, pair_args.data_dir)
    data = describe(dataset)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, data)
        tokenizer = load_tokenizer(str(output_dir))
    else:
        settings = recipe.settings_of(args, pair_args, model_args, data=data)
        checkpoint = recipe.prepare_folder(args, settings)
        tokenizer = make_tokenizer(dataset, pair_args.tokenizer_vocab_size)
    encoded = encode_pairs(tokenizer, dataset)
    print(
        f"{data['source']}: {len(encoded['train']):,} sentences to train on, "
        f"{len(encoded[pair_args.split]):,} to score ({pair_args.split}); "
        f"vocabulary {len(tokenizer):,}"
    )

    # 3. Model
    if args.evaluate_only:
        model = AutoModelForSeq2SeqLM.from_pretrained(output_dir, dtype=torch.float32)
    else:
        start = {"decoder_start_token_id": tokenizer.bos_token_id}
        values = {**asdict(model_args), **token_settings(tokenizer), **start}
        model = Seq2SeqForConditionalGeneration(Seq2SeqConfig(**values))

    # 4. Fit
    trainer = recipe.RunTrainer(
        model,
        args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
    )
    if not args.evaluate_only:
        print(f"{model.num_parameters(only_trainable=True):,} parameters to train")
        trainer.train(checkpoint)
    model = trainer.whole_model()

    # 5. Report
    pairs = dataset[pair_args.split]
    with trainer.autocast_smart_context_manager():
        written = translate(model, tokenizer, pairs["source"], pair_args)
    metrics = BLEU().compute(predictions=written, references=pairs["target"])
    run = report.run_metrics("seq2seq", config_name, args, metrics, data, trainer.stopwatch.seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            log = trainer.state.log_history
            write_report(output_dir, run, model, tokenizer, log, pair_args, pairs, written)
        print(f"BLEU {metrics[SCORE]:.1f} on {pair_args.split} ({BLEU_SIGNATURE})")
        if args.publish:
            publish(args)
    return run


# ------------------------------------------------------------------------------------ the card


@torch.no_grad()
def plot_attention(path: Path, model, tokenizer, source: str, written: str) -> None:
    """Which source token each written one looked at."""
    import matplotlib.pyplot as plt

    ends = [f"{text}{tokenizer.eos_token}" for text in (source, written)]
    ids, labels = (tokenizer(text, return_tensors="pt").input_ids.to(model.device) for text in ends)
    (weights,) = model.eval()(ids, labels=labels).cross_attentions
    names = [[tokenizer.decode([i]).strip() or "_" for i in row[0]] for row in (ids, labels)]
    figure, axes = plt.subplots(
        figsize=(1.5 + 0.3 * len(names[0]), 1.5 + 0.3 * len(names[1])), layout="constrained"
    )
    axes.imshow(weights[0, 0].float().cpu(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names[0])), names[0], rotation=90)
    axes.set_yticks(range(len(names[1])), names[1])
    axes.set(xlabel="read", ylabel="written")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(output_dir, run, model, tokenizer, log, pair_args, pairs, written) -> None:
    """The model folder: weights, code, tokenizer, figures, card, and last metrics.json."""
    report.save_model(model, tokenizer, output_dir)
    figures, config = output_dir / "figures", model.config
    report.plot_loss(log, figures / "loss.png", {"loss": "training", "eval_loss": "validation"})
    source, target = pair_args.source_language, pair_args.target_language
    shown = range(0, len(written), max(1, len(written) // 5))[:5]
    rows = [f"| {pairs[i]['source']} | {pairs[i]['target']} | {written[i]} |" for i in shown]
    sections = {
        "": f"A recurrent encoder and decoder of {model.num_parameters():,} parameters: "
        f"{config.num_hidden_layers} layers of GRUs, {config.hidden_size} wide, attention: "
        f"{config.attention_type}; a vocabulary of {config.vocab_size:,} for both languages. It "
        f"translates descriptions of photographs from {source} to {target}, with "
        f"{pair_args.num_beams} beams.",
        "Translations": "\n".join(["| source | by a person | by this model |", "|---|---|---|"])
        + "\n"
        + "\n".join(rows),
    }
    if config.attention_type != "none":
        plot_attention(figures / "attention.png", model, tokenizer, pairs[0]["source"], written[0])
        sections["Attention"] = (
            "Each row is a token that was written, each column one that was read; the darker, the "
            "more it was looked at.\n\n![attention](figures/attention.png)"
        )
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: translations by seq2seq",
        language=target,
        license="other",  # the data is for non-commercial research
        pipeline_tag="translation",
        task_name="Translation",
        split=pair_args.split,
        scores={SCORE: "BLEU"},
        usage=USAGE.format(example=pairs[0]["source"].replace('"', "'")),
        datasets=["bentrevett/multi30k"],
        tags=["seq2seq", "translation"],
        sections={
            **sections,
            "Training": f"![loss](figures/loss.png)\n\nBLEU's signature: `{BLEU_SIGNATURE}`.",
            "What it is not good for": "It knows descriptions of photographs, a dozen words long, "
            "and no other text. What it does not know it makes up.",
        },
    )
    report.finish(output_dir, run)


if __name__ == "__main__":
    main()
