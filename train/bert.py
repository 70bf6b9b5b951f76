"""Trains BERT: an encoder that fills in blanks, and then judges sentences.

    accelerate launch -q train/bert.py                                  # fills in blanks
    accelerate launch -q train/bert.py --text corpus/ --output_dir runs/my_bert
    accelerate launch -q train/bert.py --config configs/bert_reviews.yaml  # goes on with reviews
    accelerate launch -q train/bert.py --config configs/bert_sst2.yaml  # learns to judge them
    accelerate launch -q train/bert.py --config configs/bert_sst2.yaml --lora_rank 8 \\
        --learning_rate 0.002 --output_dir runs/bert_sst2_lora
    accelerate launch -q train/bert.py --evaluate_only                  # score runs/bert

Sentences are judged by a `--base_model` that was trained on blanks; `--random_weights` takes only
its shape and tokenizer, which shows what that training was worth. Blanks, too, may go on from a
`--base_model`, with the text that sentences are to be judged in (Gururangan et al. 2020, "Don't
stop pretraining").
"""

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    set_seed,
)

from groundup.data_scripts.english import load_english
from groundup.data_scripts.film_reviews import load_film_reviews
from groundup.data_scripts.glue import CLASSES, HELD_OUT, hold_out, load_glue
from groundup.data_scripts.masking import CHOSEN, MaskedBlocks, check_blank_share
from groundup.data_scripts.sources import describe
from groundup.data_scripts.text import load_text
from groundup.data_scripts.tokenization import IGNORED_LABEL
from groundup.data_scripts.wordpiece import (
    encode_running,
    pieces_that_go_on,
    specials_of,
    train_wordpiece,
)
from groundup.models.bert import BERTConfig, BERTForMaskedLM, BERTForSequenceClassification
from groundup.train import adapters, recipe, report
from groundup.train.metrics import Accuracy, MatthewsCorrelation, label_losses
from groundup.train.publishing import publish
from groundup.train.word2vec import skip_gram_vectors

BLANKS = "blanks"
CORPORA = {"english": load_english, "film_reviews": load_film_reviews}
SCORES = {BLANKS: "masked_accuracy", "sst2": "accuracy", "cola": "matthews_correlation"}
# Of the held-out text, how many blocks the pseudo-perplexity is taken over, and how many copies of
# one, each with another blank, are read at once.
SCORED_BLOCKS, COPIES = 32, 63
JUDGED_AT_ONCE = 64
JUDGE = """from transformers import pipeline

judge = pipeline("text-classification", "path/to/this/folder", trust_remote_code=True)
print(judge("{}", truncation=True))"""
USAGE = {
    BLANKS: """from transformers import pipeline

fill = pipeline("fill-mask", "path/to/this/folder", trust_remote_code=True)
print(fill("the old [MASK] sat by the fire .")[0]["sequence"])

# A vector of a sentence: the mean of its states, of length 1. Nothing has taught the model yet that
# sentences of one meaning should be neighbours; sentence-transformers can.
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("path/to/this/folder", trust_remote_code=True)
vectors = encoder.encode(["an old man", "a storm at sea"], normalize_embeddings=True)""",
    "sst2": JUDGE.format("a film with a heart , and no head ."),
    "cola": JUDGE.format("The book was written by John."),
}
BEFORE = "masked_accuracy_before"  # training, of the model that it began with
# As GLUE has them: its test labels are not public, and what is held out is of its training set.
SCORED_SPLIT = {"test": "validation", "validation": "train"}
LABELS = {
    "masked_accuracy": "Blanks that are guessed right",
    "nats_per_blank": "Loss, nats a blank",
    "pseudo_perplexity": "Pseudo-perplexity, per word piece",
    "accuracy": "Accuracy",
    "matthews_correlation": "Matthews correlation",
}
EXAMPLES = {
    "english": (
        "the old [MASK] sat by the fire .",
        "he opened the [MASK] and went out .",
        "she was very [MASK] to see him .",
        "london is the capital of [MASK] .",
    ),
    "film_reviews": (
        "this is one of the [MASK] films of the year .",
        "the plot is [MASK] , and the jokes are old .",
        "he gives a brilliant [MASK] as the king .",
        "the old [MASK] sat by the fire .",
    ),
}
# What the card says of what a model read, by corpus.
READ = {
    "english": "few books, most of them of the 19th century, and has their prejudices",
    "film_reviews": "{number:,} film reviews of the nineties, and has their taste",
}
ModelArguments = recipe.model_arguments(BERTConfig, leave_out=["vocab_size"])

FOR_BLANKS = {
    *("tokenizer_vocab_size", "vector_passes", "whole_words", "blank_share", "corpus", "text")
}


@dataclass
class TaskArguments:
    """What there is to learn, and from which text."""

    task: str = field(default=BLANKS, metadata={"help": "blanks, sst2 or cola."})
    corpus: str = field(
        default="english", metadata={"help": "To fill in blanks of: english or film_reviews."}
    )
    text: str | None = field(
        default=None, metadata={"help": "In place of a corpus: a text file or a folder of them."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds the data set's files."}
    )
    tokenizer_vocab_size: int = field(default=15000, metadata={"help": "Number of word pieces."})
    whole_words: bool = field(
        default=False, metadata={"help": "Blank out words rather than pieces of them, in training."}
    )
    blank_share: float = field(
        default=CHOSEN,
        metadata={"help": f"Share of the tokens to guess in training; {CHOSEN} where scored."},
    )
    vector_passes: int = field(
        default=0,
        metadata={"help": "Passes of skip-gram over the text, for word pieces to begin with."},
    )
    split: str = field(
        default="test",
        metadata={"help": "Sentences to score on: test, or validation, of the training ones."},
    )
    random_weights: bool = field(
        default=False, metadata={"help": "Of base_model, take shape and tokenizer only."}
    )

    def __post_init__(self):
        if self.task not in SCORES:
            raise ValueError(f"--task {self.task} is unknown: give {', '.join(SCORES)}")
        check_blank_share(self.blank_share)  # before any data is read
        if self.vector_passes < 0:
            raise ValueError(f"--vector_passes is {self.vector_passes}; it must be 0 or more")
        if self.corpus not in CORPORA:
            raise ValueError(f"--corpus {self.corpus} is unknown: give {' or '.join(CORPORA)}")
        if self.split not in ("validation", "test"):
            raise ValueError(f"--split {self.split} is unknown: give validation or test")


def load_data(arguments: TaskArguments) -> DatasetDict:
    """Documents (column `text`), or sentences with a `label`."""
    if arguments.task != BLANKS:
        dataset = load_glue(arguments.task, arguments.data_dir)
        if arguments.split == "validation":
            return hold_out(dataset["train"], *HELD_OUT[arguments.task])
        return dataset
    if arguments.text is not None:
        return load_text(arguments.text)
    return CORPORA[arguments.corpus](arguments.data_dir)


def check_choices(task_args, tune_args, args) -> None:
    """Raises ValueError for flags that do not go together."""
    if task_args.task == BLANKS:
        if unused := {"lora_rank", "random_weights", "split"} & args.chosen:
            raise ValueError(f"--{min(unused)} is for --task sst2 and cola")
        if task_args.text and "corpus" in args.chosen:
            raise ValueError("--text and --corpus are two sources of text: leave one out")
        if tune_args.base_model and "tokenizer_vocab_size" in args.chosen:
            raise ValueError("--base_model has its tokenizer: leave out --tokenizer_vocab_size")
        if tune_args.base_model and task_args.vector_passes:
            raise ValueError("--base_model has its vectors: leave out --vector_passes")
    elif unused := FOR_BLANKS & args.chosen:
        raise ValueError(
            f"--{min(unused)} is for --task {BLANKS}; {task_args.task} has its own sentences, and "
            f"the base model its tokenizer"
        )
    elif tune_args.base_model is None:
        raise ValueError(
            f"--task {task_args.task} goes on from a model that fills in blanks: name it with "
            f"--base_model (pretrained/bert is one)"
        )
    if task_args.random_weights and tune_args.lora_rank:
        raise ValueError("--lora_rank changes trained weights: leave out --random_weights")
    scores_test = task_args.task != BLANKS and task_args.split == "test"
    if args.eval_strategy != "no" and scores_test and not args.evaluate_only:
        raise ValueError(
            "evaluations in training (--eval_strategy, --eval_steps) would read the sentences that "
            "are scored: give --split validation, or --eval_strategy no"
        )
    adapters.check_optimizer(tune_args, args)


# ------------------------------------------------------------------------------- to fill in blanks


def make_masked_model(tune_args, model_args, vocab_size: int) -> BERTForMaskedLM:
    """A new model, or the base model."""
    if tune_args.base_model is None:
        return BERTForMaskedLM(BERTConfig(vocab_size=vocab_size, **asdict(model_args)))
    return adapters.load_base_model(tune_args.base_model, model_args, AutoModelForMaskedLM)


@torch.no_grad()
def begin_as_vectors(model, blocks: MaskedBlocks, passes: int, disable_tqdm: bool) -> float:
    """Word pieces begin as what skip-gram learns of the same text. Returns the seconds it took.

    That is quickly learned: each pair of neighbours is told at once. A blank tells a Transformer
    little, until it has learned to look at neighbours at all.

    Raises:
        ValueError: the text has too few different tokens for it.
    """
    began = time.perf_counter()
    table, first = model.get_input_embeddings().weight, blocks.specials.first_word
    try:
        vectors = skip_gram_vectors(blocks.ids, *table.shape, passes, disable_tqdm)[first:]
    except ValueError as error:
        raise ValueError(
            f"skip-gram finds no vectors for {len(table):,} word pieces of this text: give "
            f"--vector_passes 0, and they begin at random"
        ) from error
    size = 3 * model.config.initializer_range  # root mean square, that of the places
    table[first:] = vectors * (size / vectors.square().mean().sqrt())
    return time.perf_counter() - began


def masked_blocks(
    tokenizer, texts, block_size: int, seed: int, whole_words: bool, blank_share: float
) -> MaskedBlocks:
    """The documents, one after the other, with blanks.

    Raises:
        ValueError: a tenth of the tokens, or fewer, are known to the tokenizer.
    """
    ids, specials = encode_running(tokenizer, texts), specials_of(tokenizer)
    known = np.mean(ids >= specials.first_word)
    if known <= 0.1:
        raise ValueError(
            f"the tokenizer knows {known:.0%} of this text, as one of another language would: "
            f"leave out --base_model, and a new one is made"
        )
    goes_on = pieces_that_go_on(tokenizer, ids) if whole_words else None
    return MaskedBlocks(ids, specials, block_size, seed, goes_on, blank_share)


def blank_scores(logits, labels):
    """Of each block, the -log p of what is missing, the number of blanks, and of right guesses.

    (batch, time, vocab), (batch, time) -> (batch, 3): an evaluation keeps these rather than logits.
    """
    right = (logits.argmax(-1) == labels).sum(1, keepdim=True)  # what is no blank has no token
    return torch.cat((label_losses(logits, labels), right), dim=1)


def blank_metrics(out) -> dict[str, float]:
    """Over all blanks: the share that is guessed right, and nats a blank."""
    nats, blanks, right = out.predictions.sum(0)
    return {SCORES[BLANKS]: float(right / blanks), "nats_per_blank": float(nats / blanks)}


@torch.no_grad()
def pseudo_perplexity(model, blocks: MaskedBlocks) -> float:
    """How surprised a model is by each token, with all others of its block in sight.

    exp of the mean of -log p(token | the rest), each token blanked out by itself (Salazar et al.
    2020, "Masked language model scoring"), over blocks at equal distances.
    """
    was_training = model.training
    model.eval()
    total, count, specials = 0.0, 0, blocks.specials
    for number in np.linspace(0, len(blocks) - 1, min(SCORED_BLOCKS, len(blocks))).astype(int):
        block = blocks[int(number)]
        blanked = block["labels"] != IGNORED_LABEL
        ids = torch.where(blanked, block["labels"], block["input_ids"]).to(model.device)
        places = (ids >= specials.first_word).nonzero().flatten()
        for some in places.split(COPIES):
            copies, rows = ids.repeat(len(some), 1), torch.arange(len(some))
            copies[rows, some] = specials.mask
            log_p = model(copies).logits[rows, some].float().log_softmax(-1)
            total -= log_p[rows, ids[some]].sum().item()
        count += len(places)
    model.train(was_training)
    return math.exp(total / count)


# ------------------------------------------------------------------------------ to judge sentences


def encode_sentences(tokenizer, dataset: DatasetDict) -> DatasetDict:
    """Sentences as tokens; those that are too long are cut, and it is said how many."""
    encoded, limit = {}, tokenizer.model_max_length
    for split, rows in dataset.items():
        columns = dict(tokenizer(list(rows["text"]), truncation=True))
        full = sum(len(ids) == limit for ids in columns["input_ids"])
        if full:
            print(f"{split}: {full} sentences fill {limit} tokens or were cut")
        columns["length"] = [len(ids) for ids in columns["input_ids"]]  # for batches of one length
        encoded[split] = Dataset.from_dict({**columns, "label": list(rows["label"])})
    tokenizer.backend_tokenizer.no_truncation()  # else it would be saved, and cut whatever is read
    return DatasetDict(encoded)


def make_classifier(tune_args, task_args, model_args):
    """A classifier on the base model, or on new weights of its shape; it may have LoRA."""
    names = CLASSES[task_args.task]
    options = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    model = adapters.load_base_model(
        tune_args.base_model, model_args, AutoModelForSequenceClassification, **options
    )
    if task_args.random_weights:
        model = BERTForSequenceClassification(model.config)
    if tune_args.lora_rank:
        new = ["pooler", "classifier"]
        model = adapters.add_lora(model, tune_args.lora_rank, (), "SEQ_CLS", new_modules=new)
    return model


# --------------------------------------------------------------------------------------- the run


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, task_args, model_args, tune_args, args = recipe.parse_arguments(
        argv,
        "bert",
        TaskArguments,
        ModelArguments,
        adapters.FineTuneArguments,
        description="Trains BERT.",
    )
    output_dir = Path(args.output_dir)
    recipe.check_folder(args, BERTConfig)
    check_choices(task_args, tune_args, args)
    base, base_content = tune_args.base_model, None
    if base and not args.evaluate_only:
        base_content = adapters.check_base_model(base, BERTForMaskedLM, model_args, args.chosen)
    set_seed(args.seed)
    fills_blanks = task_args.task == BLANKS

    # 2. Data
    dataset = load_data(task_args)
    data = describe(dataset)
    checkpoint = None
    if args.evaluate_only:
        recipe.note_other_data(args, data)
        tokenizer = AutoTokenizer.from_pretrained(output_dir)
    else:
        settings = recipe.settings_of(args, task_args, model_args, tune_args, data=data)
        if base:
            settings["base_model_content"] = base_content
        checkpoint = recipe.prepare_folder(args, settings)
        if base:
            tokenizer = AutoTokenizer.from_pretrained(base)
        else:
            tokenizer = train_wordpiece(
                dataset["train"]["text"],
                task_args.tokenizer_vocab_size,
                model_args.max_position_embeddings,
            )

    # 3. Model
    auto_class = AutoModelForMaskedLM if fills_blanks else AutoModelForSequenceClassification
    if args.evaluate_only:
        wanted = BERTForMaskedLM if fills_blanks else BERTForSequenceClassification
        adapters.config_of(output_dir, wanted)  # of another task, its head would be a random one
        model = recipe.load_trained(auto_class, output_dir, model_args)
        if not fills_blanks and list(model.config.id2label.values()) != CLASSES[task_args.task]:
            raise ValueError(f"{output_dir} was not trained for --task {task_args.task}")
    elif fills_blanks:
        model = make_masked_model(tune_args, model_args, len(tokenizer))
    else:
        model = make_classifier(tune_args, task_args, model_args)

    # 4. Fit
    head_start = 0.0
    if fills_blanks:
        size = model.config.max_position_embeddings
        train, scored = (
            masked_blocks(tokenizer, dataset[split]["text"], size, seed, whole, blank_share)
            for split, seed, whole, blank_share in (
                ("train", args.seed, task_args.whole_words, task_args.blank_share),
                ("validation", 0, False, CHOSEN),  # the same for all, so that scores compare
            )
        )
        parts = {"preprocess_logits_for_metrics": blank_scores, "compute_metrics": blank_metrics}
        if task_args.vector_passes and not args.evaluate_only and checkpoint is None:
            passes = task_args.vector_passes
            head_start = begin_as_vectors(model, train, passes, args.disable_tqdm)
            print(f"word pieces begin as vectors of {passes} passes, {head_start:.0f} s")
    else:
        encoded = encode_sentences(tokenizer, dataset)
        train, scored = encoded["train"], encoded[task_args.split]
        metrics = [Accuracy(), MatthewsCorrelation()]
        parts = {"data_collator": DataCollatorWithPadding(tokenizer)}
        parts["compute_metrics"] = lambda out: {
            name: value
            for metric in metrics
            for name, value in metric.compute(
                predictions=out.predictions.argmax(-1), references=out.label_ids
            ).items()
        }
    print(f"{data['source']}: {len(train):,} to train on, {len(scored):,} to score")
    trainer = recipe.RunTrainer(
        model, args, train_dataset=train, eval_dataset=scored, processing_class=tokenizer, **parts
    )
    if not args.evaluate_only:
        adapters.check_sharding(tune_args, trainer)
    trainer.stopwatch.seconds = head_start  # training, too; a checkpoint has its own
    trained = model.num_parameters(only_trainable=True)
    before = {}
    if fills_blanks and base and not args.evaluate_only:
        before = {BEFORE: trainer.scores()[SCORES[BLANKS]]}
    if not args.evaluate_only:
        print(f"{trained:,} parameters to train; vocabulary {len(tokenizer):,}")
        trainer.train(checkpoint)
    scores = trainer.scores()
    model = trainer.whole_model()

    # 5. Report
    names = (SCORES[task_args.task], "nats_per_blank", "accuracy", "matthews_correlation")
    metrics = {name: scores[name] for name in names if name in scores}
    if fills_blanks:
        with trainer.accelerator.autocast():
            metrics["pseudo_perplexity"] = pseudo_perplexity(model, scored)
    metrics |= before
    run = report.run_metrics("bert", config_name, args, metrics, data, trainer.stopwatch.seconds)
    if trainer.is_world_process_zero():
        if not args.evaluate_only:
            log = trainer.state.log_history
            write_report(output_dir, run, model, tokenizer, log, task_args, tune_args, dataset)
        print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if args.publish:
            publish(args)
    return run


# ------------------------------------------------------------------------------------ the card


@torch.no_grad()
def guesses(model, tokenizer, examples) -> str:
    """What the model puts into some blanks, as Markdown; of texts that it can read whole."""
    lines = ["| | |", "|---|---|"]
    for text in examples:
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        if inputs["input_ids"].shape[1] > model.config.max_position_embeddings:
            continue
        place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        best = model.eval()(**inputs).logits[0, place].float().softmax(-1).topk(4)
        words = (
            f"{tokenizer.decode([i])} {p:.0%}"
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        lines.append(f"| {text} | {', '.join(words)} |")
    return "\n".join(lines)


@torch.no_grad()
def mistakes(model, tokenizer, sentences, number: int = 8) -> str:
    """The sentences of whose wrong class a model is surest, as Markdown."""
    wrong, names = [], model.config.id2label
    for rows in sentences.iter(JUDGED_AT_ONCE):
        inputs = tokenizer(rows["text"], truncation=True, padding=True, return_tensors="pt")
        probabilities = model.eval()(**inputs.to(model.device)).logits.float().softmax(-1)
        sure, guessed = (found.tolist() for found in probabilities.max(-1))
        judged = zip(sure, guessed, rows["label"], rows["text"], strict=True)
        wrong += [(p, names[guess], text) for p, guess, label, text in judged if guess != label]
    lines = ["| taken for | | |", "|---|---|---|"]
    lines += [
        f"| {name} | {sure:.0%} | {text.replace('|', ' ')} |"
        for sure, name, text in sorted(wrong, reverse=True)[:number]
    ]
    return "\n".join(lines)


def beginning(task_args, tune_args) -> str:
    """What training began with, as a sentence; none for random weights of no one's shape."""
    if tune_args.base_model is None:
        return ""
    base = Path(tune_args.base_model).name
    start = f"the weights of `{base}`"
    if task_args.random_weights:
        start = f"random weights, of the shape of `{base}`"
    if tune_args.lora_rank:
        start += f", changed by LoRA of rank {tune_args.lora_rank} (alone in `adapter/`)"
    return f"Training began with {start}."


def told_of_blanks(model, tokenizer, task_args, dataset) -> tuple[dict[str, str], str]:
    """The sections of the card, and what the model is not good for."""
    limits = "What it puts into a blank is likely, not true."
    if task_args.text is not None:
        return {}, limits
    read = READ[task_args.corpus].format(number=len(dataset["train"]))
    sections = {"Guesses": guesses(model, tokenizer, EXAMPLES[task_args.corpus])}
    return sections, f"It has read {read}. {limits}"


def told_of_sentences(model, tokenizer, scored, run) -> tuple[dict[str, str], str]:
    """The same, of a model that judges the sentences in `scored`."""
    always = max(Counter(scored["label"]).values()) / len(scored)
    errors = (
        f"Who always says the commonest class is right {always:.1%} of the time. The mistakes that "
        f"this model is surest of:\n\n{mistakes(model, tokenizer, scored)}"
    )
    limits = (
        "It has learned from single sentences of one kind; of others its probabilities mean "
        "little. Do not judge people or their work by it."
    )
    if run["metrics"]["accuracy"] < always:
        limits = f"It is right less often than who always says the commonest class. {limits}"
    return {"Errors": errors}, limits


def write_report(
    output_dir: Path, run: dict, model, tokenizer, log, task_args, tune_args, dataset
) -> None:
    """The model folder: weights, code, tokenizer, loss curve, card, and last metrics.json.

    What LoRA has learned is kept as an adapter, and added to the weights of the model.
    """
    if tune_args.lora_rank:
        adapters.save_adapter(model, tokenizer, output_dir)
        model = model.merge_and_unload()
    report.save_model(model, tokenizer, output_dir)
    lines = {"loss": "training, nats", "eval_loss": "scored, nats"}
    report.plot_loss(log, output_dir / "figures" / "loss.png", lines)
    config, fills_blanks, known = model.config, task_args.task == BLANKS, task_args.text is None
    about = (
        f"A BERT of {model.num_parameters():,} parameters: {config.num_hidden_layers} layers, "
        f"{config.hidden_size} wide, {config.num_attention_heads} heads, texts of up to "
        f"{config.max_position_embeddings} tokens, {config.vocab_size:,} word pieces."
    )
    base, start = tune_args.base_model, beginning(task_args, tune_args)
    if fills_blanks:
        about = f"{about} It fills in blanks. {start}".strip()
        if task_args.vector_passes:
            about += (
                f" Its word pieces began as vectors that skip-gram had learned from the same text, "
                f"in {task_args.vector_passes} passes."
            )
        if task_args.blank_share != CHOSEN:
            about += (
                f" In training {100 * task_args.blank_share:g} % of the tokens are blanks, in the "
                f"scores {CHOSEN:.0%}: the two losses cannot be compared."
            )
        sections, limits = told_of_blanks(model, tokenizer, task_args, dataset)
        if base:
            before, after = run["metrics"][BEFORE], run["metrics"][SCORES[BLANKS]]
            about += f" That one guesses {before:.1%} of these blanks right, this one {after:.1%}."
            limits += " What the model that it began with has read, it has read, too."
    else:
        about += f" It judges sentences: {' or '.join(config.id2label.values())}. {start}"
        sections, limits = told_of_sentences(model, tokenizer, dataset[task_args.split], run)
    scores = {name: LABELS[name] for name in run["metrics"] if name != BEFORE}
    task = "fill-mask" if fills_blanks else "text-classification"
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: a small BERT",
        language="en" if known else None,
        license="other" if known else None,  # the Brown corpus is for non-commercial purposes
        pipeline_tag=task,
        task_name="Filling in blanks" if fills_blanks else "Text classification",
        split="validation" if fills_blanks else SCORED_SPLIT[task_args.split],
        scores=scores,
        usage=USAGE[task_args.task],
        base_model=base if base and not Path(base).exists() else None,
        datasets=None if fills_blanks else ["nyu-mll/glue"],
        scored_on={} if fills_blanks else {n: {"dataset_config": task_args.task} for n in scores},
        tags=["bert", task],
        sections={
            "": about,
            **sections,
            "Training": "![loss](figures/loss.png)",
            "What it is not good for": limits,
        },
    )
    report.finish(output_dir, run)


if __name__ == "__main__":
    main()
