"""Trains seq2seq: one network reads a text, another writes what it should become.

    accelerate launch -q train/seq2seq.py                           # German to English, Multi30k
    accelerate launch -q train/seq2seq.py --config configs/seq2seq_pig_latin.yaml
    accelerate launch -q train/seq2seq.py --config configs/seq2seq_numbers.yaml    # 42: forty-two
    accelerate launch -q train/seq2seq.py --config configs/seq2seq_phonemes.yaml
    accelerate launch -q train/seq2seq.py --source_language en --target_language fr \\
        --output_dir runs/en_fr
    accelerate launch -q train/seq2seq.py --evaluate_only           # score runs/seq2seq

Both sides share one vocabulary: byte-level BPE for languages, characters or phonemes for the rest.
What differs between the data sets is in `seq2seq_tasks.py`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate.utils import tqdm
from datasets import Dataset, DatasetDict
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, set_seed

from groundup.data_scripts.sources import describe
from groundup.data_scripts.tokenization import load_tokenizer
from groundup.models.seq2seq import Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.train import recipe, report
from groundup.train.language import token_settings
from groundup.train.publishing import publish
from groundup.train.seq2seq_tasks import TASKS

WRITE_ROWS = 200  # texts, times beams, that are written at once
USAGE = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

path = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=True)
inputs = tokenizer(["{example}"], return_tensors="pt")
written = model.generate(**inputs)
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""


@dataclass
class PairArguments:
    """What there is to learn, how it becomes tokens, and how much of it is scored."""

    dataset: str = field(default="multi30k", metadata={"help": f"{', '.join(TASKS)}."})
    source_language: str = field(default="de", metadata={"help": "Of multi30k: de, en or fr."})
    target_language: str = field(default="en", metadata={"help": "Of multi30k: de, en or fr."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds the data set's files."}
    )
    tokenizer_vocab_size: int = field(
        default=6000, metadata={"help": "Number of tokens, of multi30k; others have few."}
    )
    separators: str | None = field(
        default=None,
        metadata={"help": "Of pig_latin, characters between words: half of the waves count words."},
    )
    split: str = field(
        default="test",
        metadata={"help": "Pairs to score on: validation, to choose settings by, or test."},
    )
    num_beams: int = field(default=4, metadata={"help": "Texts to keep in view; 1: greedy."})
    max_new_tokens: int = field(
        default=80, metadata={"help": "The longest text that is written, in tokens."}
    )

    def __post_init__(self):
        if self.dataset not in TASKS:
            raise ValueError(f"--dataset {self.dataset} is unknown: give {', '.join(TASKS)}")
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split {self.split} is unknown: give validation or test")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")


def check_choices(arguments: PairArguments, chosen: set[str]) -> None:
    """Raises ValueError for a flag that means something to other data sets only."""
    others = {name for task in TASKS.values() for name in task.flags}
    useless = (others - set(TASKS[arguments.dataset].flags)) & chosen
    if useless:
        raise ValueError(
            f"--{min(useless)} means nothing to --dataset {arguments.dataset}: leave it out"
        )


def make_tokenizer(dataset: DatasetDict, arguments: PairArguments):
    """One tokenizer for both sides, which puts an end to a text and pads on the right."""
    texts = [text for column in ("source", "target") for text in dataset["train"][column]]
    tokenizer = TASKS[arguments.dataset].make_tokenizer(texts, arguments)
    tokenizer.padding_side = "right"
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def separator_ids(tokenizer, separators: str) -> list[int]:
    """The tokens of some characters. Raises ValueError for one that the texts do not have."""
    vocabulary = tokenizer.get_vocab()
    if missing := [character for character in separators if character not in vocabulary]:
        raise ValueError(f"--separators has {missing[0]!r}, which stands in no text to train on")
    return [vocabulary[character] for character in separators]


def encode_pairs(tokenizer, dataset: DatasetDict) -> DatasetDict:
    """Sources as `input_ids`, targets as `labels`, each with an end; their `length` together."""
    # Straight to the backend: several times as fast, which counts for 100,000 short texts.
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # which may be left over from an earlier call

    def encode(texts) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]

    encoded = DatasetDict()
    for split, rows in dataset.items():
        sides = {"input_ids": encode(rows["source"]), "labels": encode(rows["target"])}
        length = [len(a) + len(b) for a, b in zip(*sides.values(), strict=True)]
        encoded[split] = Dataset.from_dict({**sides, "length": length})
    return encoded


@torch.no_grad()
def translate(
    model, tokenizer, sources: list[str], arguments: PairArguments, disable_tqdm: bool = False
) -> list[str]:
    """What the model writes for each source, by beam search, in their order."""
    was_training = model.training
    model.eval()
    written: dict[int, str] = {}
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # little padding
    size = max(1, WRITE_ROWS // arguments.num_beams)
    for start in tqdm(range(0, len(order), size), desc="to score", disable=disable_tqdm):
        some = order[start : start + size]
        texts = [sources[i] for i in some]
        inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        ids = model.generate(
            **inputs,
            num_beams=arguments.num_beams,
            max_new_tokens=arguments.max_new_tokens,
            do_sample=False,
        )
        found = tokenizer.batch_decode(ids, skip_special_tokens=True)
        written |= {i: text.strip() for i, text in zip(some, found, strict=True)}
    model.train(was_training)
    return [written[i] for i in range(len(sources))]


@recipe.one_line_errors
def main(argv=None):
    """Trains a recurrent encoder and decoder. Returns what metrics.json holds."""
    return train(argv, "seq2seq", Seq2SeqConfig, Seq2SeqForConditionalGeneration)


def train(argv, system: str, config_class, model_class) -> dict:
    """Arguments, data, model, fit, report; of either kind of network (`system`, its row)."""
    # 1. Arguments
    leave_out = ["vocab_size", "is_encoder_decoder"]
    config_name, pair_args, model_args, args = recipe.parse_arguments(
        argv,
        system,
        PairArguments,
        recipe.model_arguments(config_class, leave_out),
        description="Trains seq2seq.",
    )
    output_dir, task = Path(args.output_dir), TASKS[pair_args.dataset]
    recipe.check_folder(args, config_class)
    config_class(**asdict(model_args))  # a shape that cannot be is refused before data is read
    check_choices(pair_args, args.chosen)
    if pair_args.separators and not getattr(model_args, "sinusoidal_positions", False):
        # Of train/seq2seq_transformer.py, whose waves count tokens, no flag turns them on.
        raise ValueError(
            "--separators needs --sinusoidal_positions true, of train/seq2seq.py; or leave it out"
        )
    set_seed(args.seed)

    # 2. Data
    dataset = task.load(pair_args)
    data = describe(dataset)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, data)
        tokenizer = load_tokenizer(str(output_dir))
    else:
        settings = recipe.settings_of(args, pair_args, model_args, data=data)
        checkpoint = recipe.prepare_folder(args, settings)
        tokenizer = make_tokenizer(dataset, pair_args)
    encoded = encode_pairs(tokenizer, dataset)
    sources, answers = task.answers(dataset[pair_args.split])
    print(
        f"{data['source']}: {len(encoded['train']):,} pairs to train on, {len(sources):,} to score "
        f"({pair_args.split}); vocabulary {len(tokenizer):,}"
    )

    # 3. Model
    if args.evaluate_only:
        model = recipe.load_trained(AutoModelForSeq2SeqLM, output_dir, model_args)
    else:
        start = {"decoder_start_token_id": tokenizer.bos_token_id}
        values = {**asdict(model_args), **token_settings(tokenizer), **start}
        if pair_args.separators:
            values["separator_token_ids"] = separator_ids(tokenizer, pair_args.separators)
        model = model_class(config_class(**values))
        # So that `generate` writes as the score was written, wherever the model is loaded.
        model.generation_config.update(
            num_beams=pair_args.num_beams, max_new_tokens=pair_args.max_new_tokens
        )

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
    with trainer.accelerator.autocast():
        written = translate(model, tokenizer, sources, pair_args, args.disable_tqdm)
    metrics = task.metric().compute(predictions=written, references=answers)
    seconds = trainer.stopwatch.seconds
    run = report.run_metrics(system, config_name, args, metrics, data, seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            log, told = trainer.state.log_history, (sources, answers, written)
            write_report(output_dir, run, model, tokenizer, log, pair_args, told)
        found = ", ".join(f"{label} {metrics[name]:.4f}" for name, label in task.scores.items())
        print(f"{found} on {pair_args.split}")
        if args.publish:
            publish(args)
    return run


# ------------------------------------------------------------------------------------ the card


def network(config) -> str:
    """What encoder and decoder are made of, in words."""
    layers = f"{config.num_hidden_layers} layer{'s' * (config.num_hidden_layers > 1)}"
    if hasattr(config, "num_attention_heads"):
        heads = config.num_attention_heads
        return f"a Transformer's blocks, {layers} each, {config.hidden_size} wide, {heads} heads"
    kind = config.attention_type
    how = "without attention" if kind == "none" else f"with {kind} attention"
    if config.pre_attention:
        how += " before the decoder's layers and after them"
    return f"GRUs, {layers} each, {config.hidden_size} wide, {how}"


@torch.no_grad()
def plot_attention(path: Path, model, tokenizer, source: str, written: str) -> None:
    """Which source token each written one looked at; the mean of the heads of the last layer.

    What is written goes to the right, since it may be many times as long as what is read.
    """
    import matplotlib.pyplot as plt

    if hasattr(model.config, "num_attention_heads"):  # other kinds of attention keep no weights
        model.set_attn_implementation("eager")
    ids, labels = (
        tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        for text in (source, written)
    )
    outputs = model.eval()(ids, labels=labels, output_attentions=True)
    weights = outputs.cross_attentions[-1][0].float().mean(0).cpu()  # (written, read)
    names = [
        [*(tokenizer.decode([i]).strip() or "_" for i in row[0, :-1]), "end"]
        for row in (ids, labels)
    ]
    figure, axes = plt.subplots(
        figsize=(1.5 + 0.3 * len(names[1]), 1.5 + 0.3 * len(names[0])), layout="constrained"
    )
    axes.imshow(weights.T, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names[1])), names[1], rotation=90)
    axes.set_yticks(range(len(names[0])), names[0])
    axes.set(xlabel="written", ylabel="read")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def right_ones(answer: str | list[str]) -> list[str]:
    """The targets that are right: one, or several."""
    return [answer] if isinstance(answer, str) else answer


def table(sources, answers, written, rows) -> str:
    """Some of what was read, is right, and was written, as Markdown."""
    lines = ["| read | right | written |", "|---|---|---|"]
    for i in rows:
        cells = (sources[i], " / ".join(right_ones(answers[i])), written[i])
        lines.append(f"| {' | '.join(text.replace('|', ' ') for text in cells)} |")
    return "\n".join(lines)


def mistakes(sources, answers, written, number: int = 8) -> str:
    """What is farthest from what would be right, as Markdown: by the share of wrong characters."""
    import jiwer

    errors = [
        min(jiwer.cer(right, text) for right in right_ones(answer))
        for answer, text in zip(answers, written, strict=True)
    ]
    wrong = sorted((i for i, error in enumerate(errors) if error), key=lambda i: -errors[i])
    right = len(written) - len(wrong)
    said = f"{right:,} of {len(written):,} are right, to the last character."
    if not wrong:
        return said
    worst = table(sources, answers, written, wrong[:number])
    return f"{said} Of the others, the farthest from it:\n\n{worst}"


def write_report(output_dir, run, model, tokenizer, log, pair_args, told) -> None:
    """The model folder: weights, code, tokenizer, figures, card, and last metrics.json.

    Args:
        log: Trainer's.
        told: sources, answers, and what was written.
    """
    report.save_model(model, tokenizer, output_dir)
    figures, config, task = output_dir / "figures", model.config, TASKS[pair_args.dataset]
    report.plot_loss(log, figures / "loss.png", {"loss": "training", "eval_loss": "validation"})
    sources, _, written = told
    values, beams = asdict(pair_args), pair_args.num_beams
    shown = range(0, len(written), max(1, len(written) // 8))[:8]
    sections = {
        "": f"An encoder and a decoder of {network(config)}: {model.num_parameters():,} "
        f"parameters, a vocabulary of {config.vocab_size:,} for both sides. It "
        f"{task.about.format(**values)}, with {beams} beam{'s' * (beams > 1)}.",
        "Examples": table(*told, shown),
        "Mistakes": mistakes(*told),
    }
    if getattr(config, "attention_type", None) != "none":
        short = min(shown, key=lambda i: len(sources[i]))
        plot_attention(figures / "attention.png", model, tokenizer, sources[short], written[short])
        heads = hasattr(config, "num_attention_heads")
        where = "in the last layer, the mean of its heads" if heads else "behind the last layer"
        sections["Attention"] = (
            "Each column is a token that was written, each row one that was read; the darker, the "
            f"more it was looked at ({where}).\n\n"
            "![attention](figures/attention.png)"
        )
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: {task.title} by seq2seq",
        language=[language.format(**values) for language in task.languages],
        license=task.license,
        pipeline_tag=task.pipeline_tag,
        task_name=task.task_name,
        split=pair_args.split,
        scores=task.scores,
        usage=USAGE.format(**values, example=sources[0].replace('"', "'")),
        datasets=[task.hub] if task.hub else None,
        tags=["seq2seq", *task.tags],
        sections={
            **sections,
            "Training": f"![loss](figures/loss.png)\n\n{task.note}".strip(),
            "What it is not good for": task.limits,
        },
    )
    report.finish(output_dir, run)


if __name__ == "__main__":
    main()
