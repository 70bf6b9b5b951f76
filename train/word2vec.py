"""Trains Word2Vec: a vector for every word of a text.

    accelerate launch -q train/word2vec.py                                  # skip-gram
    accelerate launch -q train/word2vec.py --config configs/word2vec_cbow.yaml
    accelerate launch -q train/word2vec.py --text my_books/ --output_dir runs/my_words
    accelerate launch -q train/word2vec.py --evaluate_only                  # score runs/word2vec

The text is books, Wikipedia and the Brown corpus (`data_scripts/words.py`). An update is of some
hundred words, and is quicker than what a loop does around it: a *step* (`--max_steps`,
`--logging_steps`, `--save_steps`) is therefore 65,536 words of the text.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from transformers import AutoModel, AutoTokenizer, set_seed

from groundup.data_scripts.words import (
    check_memory,
    count_words,
    describe_words,
    encode_words,
    open_words,
    word_tokenizer,
)
from groundup.models.word2vec import Word2VecConfig, Word2VecModel
from groundup.train import recipe, report
from groundup.train.loop import train_loop
from groundup.train.negative_sampling import (
    NegativeSampling,
    draw_reaches,
    keep_probabilities,
    negative_table,
)
from groundup.train.publishing import publish
from groundup.train.word_vectors import (
    CHOSEN,
    neighbours,
    plot_map,
    score_vectors,
    to_keyed_vectors,
    without_contexts,
)

SCORE = "wordsim353"
STEP_WORDS = 2**16
CHECK_STEPS = 10  # how often all vectors are looked at: are they finite
LOSS_BLOCKS = 64  # of a step, on which the loss for the log is measured
USAGE = """import torch
from transformers import AutoModel, AutoTokenizer

path = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModel.from_pretrained(path, trust_remote_code=True)
vectors = torch.nn.functional.normalize(model.embed_tokens.weight.float(), dim=1)
nearest = (vectors @ vectors[tokenizer.vocab["{word}"]]).topk({number}).indices[1:]
print(tokenizer.convert_ids_to_tokens(nearest))"""
EXPORTS = """With Groundup installed, this `model` and `tokenizer` go to gensim and to
sentence-transformers:

```python
from sentence_transformers import SentenceTransformer
from groundup.train.word_vectors import to_keyed_vectors, to_static_embedding

keyed = to_keyed_vectors(model, tokenizer)
print(keyed.most_similar("{word}"))
encoder = SentenceTransformer(modules=[to_static_embedding(model, tokenizer)])
print(encoder.encode("a sentence is the mean of its words").shape)
```"""
# What the scores are measured on, for the card's front matter.
SCORED_ON = {
    "wordsim353": {"dataset_type": "wordsim353", "dataset_name": "WordSim-353"},
    "simlex999": {"dataset_type": "simlex999", "dataset_name": "SimLex-999"},
    "analogies": {"dataset_type": "google-analogies", "dataset_name": "Google's analogies"},
}
# Flags that Trainer would heed and plain SGD, whose rate falls to 0 in a line, has no use for.
IGNORED = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("muon_learning_rate", "muon_momentum"),
    *("label_smoothing_factor", "neftune_noise_alpha"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "activation_checkpointing"),
    *("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "torch_compile", "use_cache"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("logging_strategy", "logging_first_step", "save_strategy", "report_to", "run_name"),
    *("data_seed", "full_determinism", "auto_find_batch_size"),
    *("dataloader_num_workers", "dataloader_drop_last"),
)
ModelArguments = recipe.model_arguments(
    Word2VecConfig, leave_out=["vocab_size", "pad_token_id", "with_contexts"]
)


@dataclass
class WordArguments:
    """The text, and how it is looked at."""

    text: str | None = field(
        default=None, metadata={"help": "A text file or a folder of them; words are of a to z."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that holds gutenberg, wikipedia and brown."}
    )
    min_count: int = field(default=5, metadata={"help": "Rarer words get no vector."})
    max_vocab_size: int | None = field(
        default=None, metadata={"help": "Vectors for so many words at most, the commonest."}
    )
    window: int = field(default=5, metadata={"help": "The furthest word that a word looks at."})
    sample: float = field(
        default=1e-3, metadata={"help": "Words of a larger share are often left out. 0: none."}
    )
    block: int = field(
        default=16, metadata={"help": "Words in a row whose surroundings are looked at as one."}
    )
    sharing: int = field(default=32, metadata={"help": "Words in a row that share negatives."})
    shared_negatives: int = field(default=16, metadata={"help": "How many negatives they share."})

    def __post_init__(self):
        sizes = ("min_count", "max_vocab_size", "window", "block", "sharing", "shared_negatives")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")
        if self.window > 100 or self.block > 100 - self.window:
            raise ValueError("--window and --block are too large: at most 100 together")
        if self.sharing % self.block:
            raise ValueError(
                f"--sharing is {self.sharing}; it must be a multiple of --block, which is "
                f"{self.block}: {max(1, round(self.sharing / self.block)) * self.block} would do"
            )
        if self.max_vocab_size == 1:
            raise ValueError("--max_vocab_size is 1; vectors need two words to compare")
        if self.shared_negatives > STEP_WORDS:
            raise ValueError(
                f"--shared_negatives is {self.shared_negatives}; it must be at most {STEP_WORDS}"
            )
        if not self.sample >= 0:
            raise ValueError(f"--sample is {self.sample}; it must be 0 or more")


class WordSteps:
    """What `train_loop` calls: each step trains on the next `STEP_WORDS` words of the text.

    Which words these are follows from the step's number, and all that is drawn comes from torch's
    global generator: the model is all that a checkpoint has to hold.

    Args:
        ids: the text, as numbers of words.
        counts: (vocab_size,), how often each word occurs.
        batch: centres of an update.
        learning_rate: of the first update; it falls to 0.
        max_steps: so many; for whole passes over the text where it is not set.
        passes: over the text.
    """

    def __init__(
        self,
        model,
        ids: np.ndarray,
        counts: np.ndarray,
        word_args: WordArguments,
        batch: int,
        learning_rate: float,
        max_steps: int = -1,
        passes: float = 1,
    ):
        self.ids, self.window, self.block = ids, word_args.window, word_args.block
        self.batch, self.learning_rate = batch, learning_rate
        self.steps_per_epoch = math.ceil(len(ids) / STEP_WORDS)
        self.max_steps = max_steps if max_steps > 0 else math.ceil(passes * self.steps_per_epoch)
        self.keep = keep_probabilities(counts, word_args.sample)
        self.sampling = NegativeSampling(
            model.embed_tokens.weight.detach(),
            model.embed_contexts.weight.detach(),
            model.config.architecture,
            model.config.num_negatives,
            negative_table(counts),
            word_args.window,
            word_args.block,
            word_args.sharing,
            word_args.shared_negatives,
        )
        self.device = model.device

    def words_read(self) -> int:
        """Known words in all steps, each time they are read; before common ones are left out."""
        epochs, steps = divmod(self.max_steps, self.steps_per_epoch)
        return epochs * len(self.ids) + min(steps * STEP_WORDS, len(self.ids))

    def row_of(self, n: int):
        """The words that step n trains on, some common ones left out, with each one's reach.

        Returns:
            As `NegativeSampling.update` takes them; filled up to whole updates with words (id 0)
            that look at nothing and that nothing looks at.
        """
        start = (n - 1) % self.steps_per_epoch * STEP_WORDS
        words = torch.from_numpy(self.ids[start : start + STEP_WORDS].astype(np.int64))
        words = words[torch.rand(len(words)) < self.keep[words]]
        left, right = draw_reaches(len(words), self.window)
        fill = max(1, math.ceil(len(words) / self.batch)) * self.batch - len(words)
        pad = torch.nn.functional.pad
        row = pad(words, (self.window, self.window + fill))
        return [x.to(self.device) for x in (row, pad(left, (0, fill)), pad(right, (0, fill)))]

    @torch.no_grad()
    def step(self, n: int) -> dict[str, float]:
        """Trains on the words of step n; the loss is that of its first words, before.

        Raises:
            ValueError: the vectors have grown beyond all bounds.
        """
        row, left, right = self.row_of(n)
        some = min(LOSS_BLOCKS * self.block, len(left))
        loss = self.sampling.loss(row[: some + 2 * self.window], left[:some], right[:some])
        self.check(n, math.isfinite(loss))
        drawn = self.sampling.draw(len(left)).split(self.batch // self.sampling.sharing)
        for start, negatives in zip(range(0, len(left), self.batch), drawn, strict=True):
            stop = start + self.batch
            done = (n - 1 + start / len(left)) / self.max_steps
            self.sampling.update(
                row[start : stop + 2 * self.window],
                left[start:stop],
                right[start:stop],
                negatives,
                self.learning_rate * (1 - done),
            )
        # After the last step there is no loss to tell.
        if n % CHECK_STEPS == 0 or n == self.max_steps:
            tables = (self.sampling.vectors, self.sampling.contexts)
            self.check(n, all(table.isfinite().all() for table in tables))
        return {"loss": loss}

    @staticmethod
    def check(n: int, is_finite: bool) -> None:
        """Raises ValueError in step n where something is not finite."""
        if not is_finite:
            raise ValueError(
                f"the vectors have grown beyond all bounds by step {n}: set a lower "
                f"--learning_rate or a lower --per_device_train_batch_size, and --overwrite"
            )


def skip_gram_vectors(
    ids: np.ndarray, vocab_size: int, hidden_size: int, passes: int, disable_tqdm: bool = False
) -> torch.Tensor:
    """Vectors of a text's tokens, for the embeddings of another model to begin as.

    They are learned at the rate of `configs/word2vec.yaml`.

    Args:
        ids: (tokens,), the text.
        passes: over the text.

    Returns:
        (vocab_size, hidden_size), fp32; of a token that is not in the text, almost zero.

    Raises:
        ValueError: the vectors have grown beyond all bounds, as those of few tokens do.
    """
    model = Word2VecModel(Word2VecConfig(vocab_size=vocab_size, hidden_size=hidden_size))
    counts = np.bincount(ids, minlength=vocab_size)
    # Of few different tokens, each would come too often into one sum of gradients.
    batch = min(512, 32 * max(1, vocab_size // 900))
    steps = WordSteps(
        model, ids, counts, WordArguments(), batch=batch, learning_rate=0.028, passes=passes
    )
    for n in tqdm(range(1, steps.max_steps + 1), desc="skip-gram", disable=disable_tqdm):
        steps.step(n)
    return model.embed_tokens.weight.detach()


def check_choices(word_args: WordArguments, args: recipe.RunArguments) -> None:
    """Raises ValueError for flags that would do nothing, or not what they say."""
    if useless := sorted(args.chosen & set(IGNORED)):
        raise ValueError(
            f"Word2Vec trains by plain SGD, whose rate falls to 0: --{', --'.join(useless)} would "
            f"do nothing; leave it out"
        )
    if not 0 <= args.learning_rate < math.inf:
        raise ValueError(f"--learning_rate is {args.learning_rate}; it must be 0 or more")
    batch, sharing = args.per_device_train_batch_size, word_args.sharing
    if batch > STEP_WORDS:
        raise ValueError(
            f"--per_device_train_batch_size is {batch}; a step reads {STEP_WORDS} words, which is "
            f"the most that an update can be of"
        )
    if batch % sharing:
        raise ValueError(
            f"--per_device_train_batch_size is {batch}; it must be a multiple of --sharing, which "
            f"is {sharing}: {max(1, round(batch / sharing)) * sharing} would do"
        )
    if args.world_size > 1:
        raise ValueError("Word2Vec trains in one process: launch it without --multi_gpu")


def data_of(output_dir: Path) -> dict:
    """The data that the model in a folder was trained on, as its metrics.json has it.

    Raises:
        ValueError: there is none.
    """
    file = output_dir / "metrics.json"
    if not file.is_file():
        raise ValueError(f"{file} is missing, which says what the model was trained on")
    return recipe.read_json(file)["data"]


@recipe.one_line_errors
def main(argv=None):
    """Arguments, data, model, fit, report. Returns what metrics.json holds."""
    # 1. Arguments
    config_name, word_args, model_args, args = recipe.parse_arguments(
        argv, "word2vec", WordArguments, ModelArguments, description="Trains Word2Vec."
    )
    output_dir = Path(args.output_dir)
    check_choices(word_args, args)
    recipe.check_folder(args, Word2VecConfig)
    set_seed(args.seed)
    if model_args.architecture == "skip-gram":
        # The products of its updates are small: two threads took 21, 29 and 39 s, one 28 to 30.
        torch.set_num_threads(1)

    # 2. Data
    if args.evaluate_only:  # the scores are measured on other data, which gensim has
        data = data_of(output_dir)
    else:
        corpus = open_words(word_args.text, word_args.data_dir)
        vocabulary = count_words(corpus, word_args.min_count, word_args.max_vocab_size)
        data = describe_words(corpus, vocabulary)
        settings = recipe.settings_of(args, word_args, model_args, data=data)
        checkpoint = recipe.prepare_folder(args, settings)
        print(
            f"{data['source']}: {vocabulary.num_words:,} words; "
            f"{len(vocabulary) - 1:,} different ones get a vector"
        )

    # 3. Model
    if args.evaluate_only:
        model = AutoModel.from_pretrained(output_dir, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(output_dir)
    else:
        check_memory(len(vocabulary), model_args.hidden_size)
        config = Word2VecConfig(vocab_size=len(vocabulary), **asdict(model_args))
        model, tokenizer = Word2VecModel(config), word_tokenizer(vocabulary.words)

    # 4. Fit
    history, seconds, speed = [], 0.0, {}
    if not args.evaluate_only:
        accelerator = Accelerator(cpu=args.use_cpu)
        model.to(accelerator.device)
        ids = encode_words(corpus, vocabulary, output_dir)
        steps = WordSteps(
            model,
            ids,
            vocabulary.counts,
            word_args,
            args.per_device_train_batch_size,
            args.learning_rate,
            args.max_steps,
            args.num_train_epochs,
        )
        args.max_steps = steps.max_steps
        history, seconds = train_loop(
            accelerator, args, {"model": model}, steps.step, checkpoint=checkpoint
        )
        # As gensim counts: all words of the text, also those that are too rare for a vector.
        raw = steps.words_read() * vocabulary.num_words / vocabulary.counts.sum()
        speed = {"words_per_second": round(float(raw / seconds))}

    # 5. Report
    keyed = to_keyed_vectors(model, tokenizer)
    metrics = score_vectors(keyed) | speed
    run = report.run_metrics("word2vec", config_name, args, metrics, data, seconds)
    if not args.evaluate_only:
        write_report(output_dir, run, without_contexts(model), tokenizer, keyed, history, word_args)
    said = {"wordsim353": "WordSim-353", "simlex999": "SimLex-999", "analogies": "analogies"}
    parts = (
        f"{label} {metrics[name]:.3f} (of the {metrics[f'{name}_known']:.0%} whose words are known)"
        for name, label in said.items()
    )
    print(", ".join(parts))
    if args.publish:
        publish(args)
    return run


def write_report(output_dir, run, model, tokenizer, keyed, log, word_args) -> None:
    """The model folder: weights, code, tokenizer, figures, card, and last metrics.json."""
    report.save_model(model, tokenizer, output_dir)
    figures = output_dir / "figures"
    lines = {"loss": "training, nats per guess"}
    report.plot_loss(log, figures / "loss.png", lines, xlabel=f"steps of {STEP_WORDS:,} words")
    chosen = [words.split()[0] for words in CHOSEN.values()]
    shown = [word for word in chosen if word in keyed] or keyed.index_to_key[:5]
    near = neighbours(keyed, shown)
    if plot_map(keyed, figures / "map.png"):
        near += "\n\n![map](figures/map.png)\n\nThe two principal components of some words."
    config, known = model.config, word_args.text is None
    report.write_card(
        output_dir,
        run,
        title=f"{output_dir.name}: vectors of words",
        language="en" if known else None,
        license="other" if known else None,  # the Brown corpus is for non-commercial purposes
        pipeline_tag="feature-extraction",
        task_name="Word similarity",
        split="test",
        scores={
            "wordsim353": "WordSim-353, Spearman's rho",
            "simlex999": "SimLex-999, Spearman's rho",
            "analogies": "Google's analogies, share answered right",
        },
        scored_on=SCORED_ON,
        usage=USAGE.format(word=shown[0], number=min(9, config.vocab_size)),
        tags=["word2vec", "word-embeddings"],
        sections={
            "": f"Word2Vec ({config.architecture}): vectors of {config.hidden_size} numbers for "
            f"{config.vocab_size - 1:,} words, window {word_args.window}, "
            f"{config.num_negatives} negatives, words of {word_args.min_count} occurrences and "
            f"more. Trained at {run['metrics']['words_per_second']:,} words per second. The scores "
            "are over pairs and questions whose words are all known: "
            f"{run['metrics']['wordsim353_known']:.0%} of WordSim-353, "
            f"{run['metrics']['simlex999_known']:.0%} of SimLex-999, "
            f"{run['metrics']['analogies_known']:.0%} of the analogies. There is no validation "
            "data for these sets: settings were compared on these same sets.",
            "Neighbours": near,
            "In other libraries": EXPORTS.format(word=shown[0]),
            "Training": "![loss](figures/loss.png)",
            "What it is not good for": "A word has one vector, whatever it means in a sentence. "
            "Opposites are near each other, since they stand in the same places. It knows the "
            "words of its text only, mostly books of the 19th century where it is the corpus of "
            "this project, and has the prejudices of that text: do not judge people by it.",
        },
    )
    report.finish(output_dir, run)


if __name__ == "__main__":
    main()
