"""Our Word2Vec beside gensim's: words per second, scores and memory, in one run.

    GROUNDUP_DATA=data python benchmarks/word2vec.py [--rounds 2]

Skip-gram and CBOW, the same corpus and settings, five epochs each; they take turns, so that a slow
minute hits both. Each training is a process of its own, whose peak memory is its own too. gensim
has two workers, where our skip-gram trains on one thread, and gets the words as lists, in rows of
10,000.
Seconds are of training: finding the vocabulary is not in them, for either; looking up words is in
gensim's, which does it as it trains, while ours reads numbers that it wrote down before.
`prepare_seconds` has what came before training. Scores are gensim's own evaluation for both. Writes
results/benchmarks/word2vec.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from side_by_side import write

from groundup.data_scripts.words import count_words, encode_words, open_words, split_words
from groundup.train import machine, recipe, word2vec
from groundup.train.word_vectors import score_vectors

RUNS = Path(__file__).resolve().parent.parent / "runs"  # on a disk, as a run's own folder
CONFIGS = {"skip-gram": "word2vec", "cbow": "word2vec_cbow"}
ROW_WORDS = 10_000  # gensim takes no longer ones
WORKERS = 2


def settings_of(architecture: str) -> dict:
    """The YAML file of an architecture."""
    path = recipe.CONFIGS / f"{CONFIGS[architecture]}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def train_ours(architecture: str) -> dict:
    """A run of the config, as the command line makes it."""
    config = recipe.CONFIGS / f"{CONFIGS[architecture]}.yaml"
    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS) as folder:
        started = time.perf_counter()
        corpus = open_words()
        encode_words(corpus, count_words(corpus, settings_of(architecture)["min_count"]), folder)
        prepared = time.perf_counter() - started
        flags = ["--config", str(config), f"--output_dir={folder}/run", "--disable_tqdm=true"]
        run = word2vec.main(flags)
    return {"seconds": run["train_seconds"], "prepare_seconds": prepared, **run["metrics"]}


def train_gensim(architecture: str) -> dict:
    """gensim with the same settings; its own learning rate."""
    from gensim.models import Word2Vec

    settings = settings_of(architecture)
    started = time.perf_counter()
    corpus = open_words()
    words = [word for piece in corpus.read() for word in split_words(piece)]
    rows = [words[i : i + ROW_WORDS] for i in range(0, len(words), ROW_WORDS)]
    model = Word2Vec(
        vector_size=settings["hidden_size"],
        window=settings["window"],
        negative=settings["num_negatives"],
        min_count=settings["min_count"],
        sample=settings["sample"],
        sg=int(architecture == "skip-gram"),
        workers=WORKERS,
        seed=0,
    )
    model.build_vocab(rows)
    trained = time.perf_counter()
    epochs = settings["num_train_epochs"]
    model.train(rows, total_examples=model.corpus_count, epochs=epochs)
    done = time.perf_counter()
    return {
        "seconds": done - trained,
        "prepare_seconds": trained - started,
        "words_per_second": len(words) * epochs / (done - trained),
        **score_vectors(model.wv),
    }


TRAIN = {"groundup": train_ours, "gensim": train_gensim}


def measure(who: str, architecture: str) -> dict:
    """One training in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", who, architecture],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def summarise(rows: list[dict]) -> dict:
    """The median of each figure over the rounds."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    """Measures all and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        who, architecture = args.measure
        found = TRAIN[who](architecture)
        print(json.dumps(found | {"peak_memory_bytes": machine.peak_memory_bytes()}))
        return
    try:
        vocabulary = count_words(open_words(), settings_of("skip-gram")["min_count"])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    content = {"words": vocabulary.num_words, "vocabulary": len(vocabulary) - 1, "workers": WORKERS}
    for architecture in CONFIGS:
        rows = {who: [] for who in TRAIN}
        for _ in range(args.rounds):
            for who in TRAIN:
                rows[who].append(measure(who, architecture))
                print(architecture, who, rows[who][-1], flush=True)
        found = {who: summarise(of) for who, of in rows.items()}
        ours, theirs = (found[who]["words_per_second"] for who in TRAIN)
        content[architecture] = {
            **found,
            "ratio_of_words_per_second": ours / theirs,
            "rounds": rows,
        }
    write("word2vec", content)


if __name__ == "__main__":
    main()
