"""What the language models share: their texts, their tokenizers, what their cards show."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict

from groundup.data_scripts.gutenberg import load_gutenberg
from groundup.data_scripts.shakespeare import load_shakespeare
from groundup.data_scripts.text import load_text
from groundup.data_scripts.tokenization import KINDS, load_tokenizer, train_tokenizer
from groundup.train import report
from groundup.train.writing import write_on

SCORE = "nats_per_character"
USAGE = """from transformers import pipeline

write = pipeline("text-generation", "path/to/this/folder", trust_remote_code=True)
print(write("ROMEO:", max_new_tokens=100, do_sample=True, temperature=0.8)[0]["generated_text"])"""
DATASETS_ON_HUB = {"tinyshakespeare": ["karpathy/tiny_shakespeare"]}


@dataclass
class TextArguments:
    """The text, and how it becomes tokens."""

    dataset: str = field(default="shakespeare", metadata={"help": "shakespeare or dickens."})
    text: str | None = field(
        default=None, metadata={"help": "A text file or a folder of them, in place of a dataset."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds the dataset's files."}
    )
    tokenizer: str = field(
        default="characters",
        metadata={"help": "characters, bpe, unigram, or a saved one."},
    )
    tokenizer_vocab_size: int | None = field(
        default=None, metadata={"help": "Number of tokens that bpe or unigram make."}
    )
    prompt: str = field(default="\n", metadata={"help": "What the samples begin with."})

    def __post_init__(self):
        if self.dataset not in ("shakespeare", "dickens"):
            raise ValueError(f"--dataset {self.dataset} is unknown: give shakespeare or dickens")


def load_dataset(arguments: TextArguments) -> DatasetDict:
    """Splits train and validation of documents (column `text`)."""
    if arguments.text is not None:
        return load_text(arguments.text)
    if arguments.dataset == "dickens":
        return load_gutenberg("dickens", arguments.data_dir)
    return load_shakespeare(arguments.data_dir)


def make_tokenizer(arguments: TextArguments, texts: list[str]):
    """The tokenizer asked for: made from the texts, or a saved one."""
    if arguments.tokenizer in KINDS:
        return train_tokenizer(arguments.tokenizer, texts, arguments.tokenizer_vocab_size)
    return load_tokenizer(arguments.tokenizer)


def token_settings(tokenizer) -> dict[str, int]:
    """What a model's config has from the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_report(
    output_dir: Path,
    run: dict,
    model,
    log: list,
    tokenizer,
    arguments: TextArguments,
    *,
    kind: str,
    about: str,
    training: str,
    base_model: str | None = None,
) -> None:
    """The model folder: weights, code, tokenizer, loss curve, card; all but metrics.json.

    Args:
        run: what `report.run_metrics` gave.
        log: Trainer's.
        kind: of model, in a word.
        about: what it is, for the card.
        training: what the card says below the loss curve.
        base_model: the name on the Hub of the model that it began as.
    """
    report.save_model(model, tokenizer, output_dir)
    report.plot_loss(
        log,
        output_dir / "figures" / "loss.png",
        {"loss": "training, nats per token", f"eval_{SCORE}": "validation, nats per character"},
    )
    samples = [write_on(model, tokenizer, arguments.prompt, seed) for seed in (1, 2)]
    known = arguments.text is None  # of a text of the user's own we know nothing
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: a small {kind}",
        language="en" if known else None,
        license="apache-2.0" if known else None,
        pipeline_tag="text-generation",
        task_name="Language modelling",
        scores={
            SCORE: "Validation loss, nats per character",
            "bits_per_character": "the same in bits",
        },
        usage=USAGE,
        base_model=base_model,
        datasets=DATASETS_ON_HUB.get(run["data"]["name"]),
        tags=[kind.lower(), "text-generation"],
        sections={
            "": about,
            "Samples": "\n\n".join(f"```text\n{sample.strip()}\n```" for sample in samples),
            "Training": f"![loss](figures/loss.png)\n\n{training}",
            "What it is not good for": "It knows what it has read and nothing else: no facts to "
            "rely on, no instructions, no other language or style. It is a model to learn from.",
        },
    )
