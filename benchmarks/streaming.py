"""What streaming costs: tokens per second, memory by the size of the corpus, and to resume.

    GROUNDUP_DATA=data python benchmarks/streaming.py [--megabytes 10]

The text is Wikipedia's and Gutenberg's of `$GROUNDUP_DATA`, an article or a book per document, as
JSON lines; then ten times the same. Every figure is from a process of its own and of one thread.
Seconds are of the processor, so that other work on the machine does not count. Writes
results/benchmarks/streaming.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from groundup.data_scripts.sources import DATA_VARIABLE
from groundup.data_scripts.streaming import PackedStream, open_stream
from groundup.data_scripts.text import load_text
from groundup.data_scripts.tokenization import train_tokenizer
from groundup.train import machine, report

OUTPUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "streaming.json"
BLOCK = 256
VOCABULARY = 4096


def write_corpus(folder: Path, megabytes: float, copies: int) -> None:
    """JSON lines of so many million characters, and that some times over, a file for each."""
    root = Path(os.environ[DATA_VARIABLE])
    sources = [root / "wikipedia" / "wiki_demo_30_articles.txt.xz", root / "gutenberg"]
    texts = [
        text for source in sources for split in load_text(source).values() for text in split["text"]
    ]
    lines, left = [], int(megabytes * 1e6)
    for text in texts:
        for start in range(0, min(len(text), left), 50_000):  # of a book, a chapter or so
            lines.append(json.dumps({"text": text[start : min(start + 50_000, left)]}))
        left = max(0, left - len(text))
    folder.mkdir()
    for copy in range(copies):
        (folder / f"{copy}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: str, num_processes: int) -> dict:
    """One pass over a process's share of a corpus, and how long it takes to go on from its end."""
    documents, dataset, _ = open_stream(folder, validation_documents=1)
    tokenizer = train_tokenizer("bpe", dataset["train"]["text"][:20], VOCABULARY)

    def make_stream():
        return PackedStream(documents, tokenizer, BLOCK, 0, 0, num_processes)

    stream, blocks = make_stream(), 0
    iterator = iter(stream)
    started = time.process_time()
    place = stream.state_dict()
    while next(iterator) and stream.state_dict()["pass"] == 0:
        place = stream.state_dict()
        blocks += 1
    seconds = time.process_time() - started
    peak = machine.peak_memory_bytes()
    resumed = make_stream()
    resumed.load_state_dict(place)
    started = time.process_time()
    list(islice(resumed, 1))
    return {
        "tokens": blocks * BLOCK,
        "tokens_per_second": round(blocks * BLOCK / seconds),
        "peak_memory_bytes": peak,
        "seconds_to_resume_at_the_end": round(time.process_time() - started, 2),
        "bytes_of_the_place": len(json.dumps(place)),
    }


def main() -> None:
    """Measures the corpus, ten of it, and an eighth of the documents of ten."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=10, help="size of the smaller corpus")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], int(args.measure[1]))))
        return
    if DATA_VARIABLE not in os.environ:
        parser.error(f"set ${DATA_VARIABLE} to the folder that holds wikipedia/ and gutenberg/")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for copies in (1, 10):
            write_corpus(Path(scratch) / str(copies), args.megabytes, copies)
        for copies, num_processes in ((1, 1), (10, 1), (10, 8)):
            done = subprocess.run(
                [sys.executable, __file__, "--measure", f"{scratch}/{copies}", str(num_processes)],
                env=os.environ | {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            megabytes = args.megabytes * copies
            rows.append({"megabytes": megabytes, "processes": num_processes} | found)
            print(rows[-1])
    content = {"rows": rows, **report.provenance()}
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
