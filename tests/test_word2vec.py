"""Word2Vec against NumPy, its hand-made gradients against autograd, its runs and exports."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.test.utils import datapath
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from test_recipe import assert_refused
from transformers import AutoModel, AutoTokenizer, pipeline

from groundup.data_scripts import words
from groundup.models.word2vec import Word2VecConfig, Word2VecModel
from groundup.train import recipe, report, word2vec
from groundup.train.negative_sampling import (
    NegativeSampling,
    draw_reaches,
    keep_probabilities,
    negative_table,
)
from groundup.train.word_vectors import (
    neighbours,
    place_label,
    plot_map,
    score_vectors,
    to_keyed_vectors,
    to_static_embedding,
    without_contexts,
)

ARCHITECTURES = ["skip-gram", "cbow"]
both = pytest.mark.parametrize("architecture", ARCHITECTURES)
NAMES = ["paris", "london", "rome", "king", "queen", "man", "woman", "cat", "dog", "tiger"]
NAMES += ["love", "sex", "book", "paper", "cup"]


def make(architecture="skip-gram", vocab_size=40, hidden_size=6, **options) -> Word2VecModel:
    """A model all of whose vectors are random, but those of unknown words."""
    torch.manual_seed(0)
    model = Word2VecModel(
        Word2VecConfig(
            vocab_size=vocab_size, hidden_size=hidden_size, architecture=architecture, **options
        )
    )
    with torch.no_grad():
        for table in (model.embed_tokens, model.embed_contexts):
            table.weight[1:].normal_(0, 0.7)
    return model


# ---------------------------------------------------------------------------- the plain loss


def by_numpy(model, centres, contexts, mask, negatives):
    """Loss and gradients of v and u, guess by guess, in double precision."""
    v, u = (t.weight.detach().double().numpy() for t in (model.embed_tokens, model.embed_contexts))
    dv, du, loss, guesses = np.zeros_like(v), np.zeros_like(u), 0.0, 0

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def guess(hidden, right, wrong):
        """The loss, and what moves `hidden`; du is added to."""
        back, found = np.zeros_like(hidden), 0.0
        share = model.config.num_negatives / len(wrong)
        for word, label, weight in [(right, 1, 1.0), *((w, 0, share) for w in wrong)]:
            p = sigmoid(u[word] @ hidden)
            found -= weight * math.log(p if label else 1 - p)
            back += weight * (p - label) * u[word]
            du[word] += weight * (p - label) * hidden
        return found, back

    for i, centre in enumerate(centres):
        around = [j for j in range(mask.shape[1]) if mask[i, j]]
        if model.config.architecture == "skip-gram":
            for j in around:
                found, back = guess(v[centre], contexts[i, j], negatives[i, j])
                dv[centre] += back
                loss, guesses = loss + found, guesses + 1
        elif around:
            mean = np.mean([v[contexts[i, j]] for j in around], axis=0)
            found, back = guess(mean, centre, negatives[i, 0])
            for j in around:
                dv[contexts[i, j]] += back / len(around)
            loss, guesses = loss + found, guesses + 1
    return loss / guesses, dv / guesses, du / guesses


@both
@pytest.mark.parametrize("num_drawn", [3, 5])
def test_loss_and_gradients_are_those_of_numpy(architecture, num_drawn):
    model = make(architecture)
    centres, contexts = torch.randint(1, 40, (7,)), torch.randint(1, 40, (7, 4))
    negatives = torch.randint(1, 40, (7, 4, num_drawn))
    mask = torch.rand(7, 4) < 0.6
    mask[0], mask[1] = True, False  # a centre with nothing around it guesses nothing
    output = model(centres, context_ids=contexts, context_mask=mask, negative_ids=negatives)
    output.loss.backward()
    arrays = (x.numpy() for x in (centres, contexts, mask, negatives))
    loss, dv, du = by_numpy(model, *arrays)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    for table, expected in ((model.embed_tokens, dv), (model.embed_contexts, du)):
        torch.testing.assert_close(
            table.weight.grad, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6
        )


@both
def test_the_first_loss_is_one_plus_k_times_ln_2(architecture):
    model = Word2VecModel(Word2VecConfig(vocab_size=30, architecture=architecture, num_negatives=7))
    ids = torch.arange(1, 9)
    output = model(ids, context_ids=ids.view(-1, 1), negative_ids=ids.view(-1, 1, 1))
    assert output.loss.item() == pytest.approx(8 * math.log(2), rel=1e-6)


def test_what_does_not_fit_is_refused():
    model, ids = make(), torch.arange(1, 5)
    for negatives in (None, ids.view(-1, 1), torch.ones(4, 3, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"need negative_ids of shape \(4, 2, N\)"):
            model(ids, context_ids=ids.repeat(2, 1).T, negative_ids=negatives)
    with pytest.raises(ValueError, match="skip-gram or cbow"):
        Word2VecConfig(architecture="glove")
    with pytest.raises(ValueError, match="hidden_size is 0"):
        Word2VecConfig(hidden_size=0)
    for pad in (-1, 8, 2.0, None):
        with pytest.raises(ValueError, match=f"pad_token_id is {pad}.* from 0 to 7"):
            Word2VecConfig(vocab_size=8, pad_token_id=pad)
    smaller = without_contexts(model)
    with pytest.raises(ValueError, match="without the vectors u"):
        smaller(ids, context_ids=ids[:, None], negative_ids=ids.view(-1, 1, 1))
    assert torch.equal(smaller(ids).last_hidden_state, model(ids).last_hidden_state)


# ------------------------------------------------------------------------- the quick gradients


def sampling_of(model, window=3, block=4, blocks_sharing=1, shared=5) -> NegativeSampling:
    return NegativeSampling(
        model.embed_tokens.weight.detach(),
        model.embed_contexts.weight.detach(),
        model.config.architecture,
        model.config.num_negatives,
        torch.arange(1, 40, dtype=torch.int32),
        window,
        block,
        blocks_sharing * block,
        shared,
    )


def plain_loss(model, row, left, right, negatives, window):
    """The loss of `Word2VecModel.forward` for the same guesses."""
    reach = torch.arange(-window, window + 1)
    reach = reach[reach != 0]
    place = torch.arange(len(left))[:, None] + window
    mask = (reach >= -left[:, None]) & (reach <= right[:, None])
    return model(
        row[window:-window],
        context_ids=row[place + reach],
        context_mask=mask,
        negative_ids=negatives.repeat_interleave(len(left) // len(negatives), 0)[:, None],
    ).loss, mask


@both
@pytest.mark.parametrize(
    ("window", "block", "blocks_sharing"), [(3, 4, 1), (3, 1, 2), (5, 16, 3), (16, 5, 6)]
)
def test_hand_made_gradients_are_those_of_autograd(architecture, window, block, blocks_sharing):
    model, blocks = make(architecture), 6
    row = torch.randint(1, 40, (blocks * block + 2 * window,))
    left, right = draw_reaches(blocks * block, window)
    left[3] = right[3] = 0  # a word that looks at nothing
    negatives = torch.randint(1, 40, (blocks // blocks_sharing, 5))
    loss, mask = plain_loss(model, row, left, right, negatives, window)
    loss.backward()
    guesses = mask.sum() if architecture == "skip-gram" else mask.any(1).sum()
    sampling = sampling_of(model, window, block, blocks_sharing)
    found = {id(t): torch.zeros_like(t) for t in (sampling.vectors, sampling.contexts)}
    for table, ids, gradient in sampling.gradients(row, left, right, negatives):
        found[id(table)].index_add_(0, ids.reshape(-1), gradient.reshape(-1, 6))
    for weight, table in (
        (model.embed_tokens.weight, sampling.vectors),
        (model.embed_contexts.weight, sampling.contexts),
    ):
        expected = -weight.grad * guesses
        expected[0] = 0  # unknown words: `padding_idx` keeps their gradient at zero
        # Sums of a hundred terms and more, many of which cancel each other.
        close = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(found[id(table)], expected, rtol=1e-5, atol=close)


@both
@pytest.mark.parametrize("blocks_sharing", [1, 40], ids=["many groups", "five groups"])
def test_an_update_goes_down_these_gradients_with_one_result_whatever_the_threads_do(
    architecture, blocks_sharing
):
    window, block = 3, 4
    row = torch.randint(1, 8, (200 * block + 2 * window,))  # few words, so that they collide
    left, right = draw_reaches(200 * block, window)
    results, before_all = [], torch.get_num_threads()
    for threads in (1, 2):
        model = make(architecture)
        torch.set_num_threads(threads)
        sampling = sampling_of(model, blocks_sharing=blocks_sharing, shared=40)
        torch.manual_seed(1)
        before = sampling.loss(row, left, right)
        for _ in range(3):
            sampling.update(row, left, right, sampling.draw(len(left)), 1e-4)
        assert sampling.loss(row, left, right) < before
        results.append([t.weight.clone() for t in (model.embed_tokens, model.embed_contexts)])
    torch.set_num_threads(before_all)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not results[0][0][0].any() and not results[0][1][0].any()  # unknown words


@both
def test_the_loss_for_the_log_is_the_plain_one(architecture):
    model = make(architecture)
    row = torch.randint(1, 40, (26,))
    left, right = draw_reaches(20, 3)
    sampling = sampling_of(model)
    torch.manual_seed(3)
    found = sampling.loss(row, left, right)
    torch.manual_seed(3)
    negatives = sampling.table[torch.randint(len(sampling.table), (5, 5))].long()
    expected, _ = plain_loss(model, row, left, right, negatives, 3)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_reaches_are_even_and_end_with_the_row():
    torch.manual_seed(0)
    left, right = draw_reaches(5000, 5)
    assert left[0] == right[-1] == 0 and left[1] <= 1
    inner = left[5:-5]
    assert torch.equal(inner, right[5:-5])
    shares = torch.bincount(inner.long(), minlength=6)[1:] / len(inner)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.03)


def test_common_words_are_left_out_and_negatives_drawn_as_the_paper_says():
    counts = np.array([0, 800, 150, 50])
    keep = keep_probabilities(counts, 0.1)
    expected = [(math.sqrt(f / 0.1) + 1) * 0.1 / f for f in (0.8, 0.15)]
    torch.testing.assert_close(keep[1:], torch.tensor([expected[0], 1.0, 1.0]))
    assert expected[1] > 1
    assert keep_probabilities(counts, 0).tolist() == [1, 1, 1, 1]
    drawn = torch.bincount(negative_table(counts, size=100_000).long(), minlength=4) / 100_000
    powers = torch.tensor(counts).double() ** 0.75
    torch.testing.assert_close(drawn.double(), powers / powers.sum(), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------ words


def test_words_are_counted_and_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("groundup.data_scripts.text.PIECE_BYTES", 7)  # pieces smaller than lines
    file = tmp_path / "book.txt"
    file.write_text("The cat's dog. THE dog, 3 cats --- don't\nthe end.\n" * 2)
    corpus = words.open_words(file)
    vocabulary = words.count_words(corpus, min_count=4)
    assert vocabulary.words == ["<unk>", "the", "dog"]
    assert vocabulary.counts.tolist() == [0, 6, 4] and vocabulary.num_words == 18
    assert words.encode_words(corpus, vocabulary, tmp_path).tolist() == [1, 2, 1, 2, 1] * 2
    assert list(tmp_path.iterdir()) == [file]  # what is written down has no name
    tokenizer = words.word_tokenizer(vocabulary.words)
    assert tokenizer("The DOG's dog, the cat").input_ids == [1, 0, 2, 1, 0]
    monkeypatch.undo()
    assert words.count_words(corpus, 4).fingerprint == vocabulary.fingerprint
    assert words.count_words(corpus, 1, max_words=3).words[1:] == ["the", "dog", "cat's"]


def test_an_apostrophe_is_one_however_it_is_printed():
    printed = f"Don{words.APOSTROPHE}t DON'T dogs{words.APOSTROPHE}"
    assert words.split_words(printed) == ["don't", "don't", "dogs"]
    tokenizer = words.word_tokenizer(["<unk>", "don't", "dogs"])
    assert tokenizer(printed).input_ids == [1, 1, 2]


def test_the_rarest_words_are_forgotten_where_there_are_too_many(tmp_path, caplog):
    file = tmp_path / "book.txt"
    file.write_text("one two two three three three four four four four")
    vocabulary = words.count_words(words.open_words(file), 1, max_counted=2)
    assert vocabulary.words[1:] == ["four", "three"]
    assert "more than 2 words" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no words in it"),
        (b"12 34 !", "has no words in it"),
        (b"word " * 50, "need two words to compare"),
        (b"one two three", "of which 0 occur 5 times"),
        (bytes(range(256)) * 40, "is not text"),
    ],
)
def test_a_text_that_will_not_do_ends_in_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "book.txt"
    file.write_bytes(content)
    with pytest.raises(SystemExit):
        word2vec.main(["--text", str(file), "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith("error: ")
    assert message in said


def test_vectors_that_do_not_fit_into_memory_are_refused():
    words.check_memory(500, 100, available=2**20)
    with pytest.raises(ValueError, match="raise --min_count"):
        words.check_memory(10_000, 100, available=2**20)


def test_no_data_names_the_ways(tmp_path, monkeypatch):
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--text book\.txt"):
        words.open_words()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        words.open_words(tmp_path / "nothing")


# ------------------------------------------------------------------------------- use and scores


def small_vectors(folder=None):
    tokenizer = words.word_tokenizer(["<unk>", *NAMES])
    model = make(vocab_size=len(tokenizer), hidden_size=8)
    if folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def test_vectors_go_to_gensim_and_sentence_transformers(tmp_path):
    model, tokenizer = small_vectors()
    keyed = to_keyed_vectors(model, tokenizer)
    assert keyed.index_to_key == NAMES
    expected = model.embed_tokens.weight.detach()
    np.testing.assert_array_equal(keyed["king"], expected[4].numpy())
    from sentence_transformers import SentenceTransformer  # slow to import, and one test needs it

    static = to_static_embedding(model, tokenizer)
    encoder = SentenceTransformer(modules=[static], device="cpu")
    found = encoder.encode("The King, queen")  # one unknown word of three
    np.testing.assert_allclose(found, (expected[4] + expected[5]) / 3, rtol=1e-5, atol=1e-6)


def test_it_loads_by_the_auto_classes_and_extracts_features(tmp_path):
    model, _ = small_vectors(tmp_path)
    extract = pipeline("feature-extraction", str(tmp_path), tokenizer=str(tmp_path))
    found = torch.tensor(extract("King and queen"))
    torch.testing.assert_close(found, model.embed_tokens.weight[[4, 0, 5]].detach()[None])
    assert AutoTokenizer.from_pretrained(tmp_path)("A Tiger!").input_ids == [0, 10]
    assert type(AutoModel.from_pretrained(tmp_path)) is Word2VecModel


def test_scores_are_rank_correlations_over_the_known_pairs():
    model, tokenizer = small_vectors()
    keyed = to_keyed_vectors(model, tokenizer)
    lines = Path(datapath("wordsim353.tsv")).read_text().splitlines()
    pairs = [line.split("\t") for line in lines if line[0] != "#"]
    known = [(a, b, float(rating)) for a, b, rating in pairs if a in NAMES and b in NAMES]
    cosines = [cosine_similarity([keyed[a]], [keyed[b]])[0, 0] for a, b, _ in known]
    scores = score_vectors(keyed)
    expected = spearmanr(cosines, [rating for *_, rating in known]).statistic
    assert len(known) > 4 and scores["wordsim353"] == pytest.approx(expected)
    assert scores["wordsim353_known"] == pytest.approx(len(known) / len(pairs))
    lines = Path(datapath("questions-words.txt")).read_text().splitlines()
    questions = [line.lower().split() for line in lines if line[0] != ":"]
    asked = [question for question in questions if set(question) <= set(NAMES)]
    assert asked and scores["analogies_known"] == pytest.approx(len(asked) / len(questions))
    unknown = words.word_tokenizer(["<unk>", "qqq", "zzz"])
    scores = score_vectors(to_keyed_vectors(make(vocab_size=3), unknown))
    assert scores["wordsim353"] == scores["analogies"] == scores["simlex999_known"] == 0
    assert scores["analogies_known"] == 0


def test_neighbours_and_the_map(tmp_path):
    keyed = to_keyed_vectors(*small_vectors())
    table = neighbours(keyed, ["king", "nothing"], 2).splitlines()
    assert len(table) == 3 and table[2].startswith("| king | ")
    near = keyed.most_similar("king", topn=1)[0][0]
    assert f"| {near} " in table[2]
    assert plot_map(keyed, tmp_path / "figures" / "map.png", {"all": " ".join(NAMES)})
    assert (tmp_path / "figures" / "map.png").stat().st_size > 1000
    assert not plot_map(keyed, tmp_path / "none.png", {"all": "king nothing"})


def test_labels_of_one_place_stand_around_it():
    figure = Figure()
    axes = figure.subplots()
    axes.scatter([0, 1], [0, 1])
    axes.margins(0.5)
    figure.draw_without_rendering()
    boxes, places = [], []
    for word in ("paris", "london", "rome", "cat", "dog"):
        label = axes.annotate(word, (0, 0), (0, 0), textcoords="offset points", fontsize=8)
        box = place_label(label, boxes)
        boxes.append(box)
        places.append(label.get_position())
    assert len(set(places[:4])) == 4 and places[4] == places[0]  # where all are taken, the best
    assert not any(a.overlaps(b) for i, a in enumerate(boxes[:4]) for b in boxes[:i])


def test_a_card_says_what_the_scores_are_measured_on(tmp_path):
    model, tokenizer = small_vectors()
    keyed = to_keyed_vectors(model, tokenizer)
    metrics = score_vectors(keyed) | {"words_per_second": 1}
    data = {"name": words.NAME, "source": "a test", "license": words.LICENSE, "fingerprint": "0"}
    args = recipe.RunArguments(output_dir=str(tmp_path))
    run = report.run_metrics("word2vec", "word2vec", args, metrics, data, 1.0)
    log = [{"step": 1, "loss": 4.0}]
    word2vec.write_report(tmp_path, run, model, tokenizer, keyed, log, word2vec.WordArguments())
    card = ModelCard.load(tmp_path / "README.md")
    scored = {(x.metric_type, x.dataset_name, x.dataset_split) for x in card.data.eval_results}
    assert scored == {
        ("wordsim353", "WordSim-353", "test"),
        ("simlex999", "SimLex-999", "test"),
        ("analogies", "Google's analogies", "test"),
    }
    assert card.data.license == "other"  # of its corpus, Brown is for non-commercial purposes
    known = f"{metrics['analogies_known']:.0%} of the analogies"
    for text in (known, "compared on these same sets", "to_keyed_vectors", "to_static_embedding"):
        assert text in card.text


# --------------------------------------------------------------------------------------- a run


@pytest.fixture
def text(tmp_path):
    """Words that stand beside words of their own kind."""
    generator = np.random.default_rng(0)
    kinds = [NAMES[:5], NAMES[5:10], NAMES[10:]]
    lines = [" ".join(generator.choice(kinds[i % 3], 20)) for i in range(600)]
    file = tmp_path / "book.txt"
    file.write_text("\n".join(lines))
    return file


def flags(text, folder, *more) -> list[str]:
    small = ["--hidden_size=8", "--per_device_train_batch_size=64", "--sample=0", "--window=2"]
    small += ["--block=16", "--sharing=32"]
    often = ["--save_steps=2", "--logging_steps=1", "--disable_tqdm=true", "--learning_rate=0.05"]
    return ["--text", str(text), "--output_dir", str(folder), *small, *often, *more]


@both
def test_a_run_learns_is_scored_and_resumes_to_the_same_bits(
    architecture, text, tmp_path, monkeypatch
):
    monkeypatch.setattr(word2vec, "STEP_WORDS", 4000)
    more = [f"--architecture={architecture}", "--num_train_epochs=2"]
    run = word2vec.main(flags(text, tmp_path / "a", *more))
    manifest = json.loads((tmp_path / "a" / "checkpoint-6" / recipe.MANIFEST).read_text())
    assert run["metrics"]["words_per_second"] > 0 and manifest["train_seconds"] > 0
    assert run["train_seconds"] == round(manifest["train_seconds"], 1)
    assert run["data"]["name"] == "book" and run["data"]["license"] == "unknown"
    log = json.loads((tmp_path / "a" / "checkpoint-6" / "log.json").read_text())[0]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[0]["loss"] == pytest.approx(6 * math.log(2), rel=1e-6) and log[-1]["loss"] < 4

    model = AutoModel.from_pretrained(tmp_path / "a")
    keyed = to_keyed_vectors(model, AutoTokenizer.from_pretrained(tmp_path / "a"))
    near = [word for word, _ in keyed.most_similar("paris", topn=4)]
    assert set(near) == set(NAMES[1:5])
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert "| love |" in card.text  # the one of the chosen words that is in the text
    assert card.data.license is None  # of a text of one's own nothing is known
    assert not hasattr(model, "embed_contexts")

    step = word2vec.WordSteps.step

    def stop(self, n):
        if n == 4:
            raise KeyboardInterrupt
        return step(self, n)

    monkeypatch.setattr(word2vec.WordSteps, "step", stop)
    with pytest.raises(SystemExit):
        word2vec.main(flags(text, tmp_path / "b", *more))
    assert (tmp_path / "b" / "checkpoint-2").is_dir()
    monkeypatch.setattr(word2vec.WordSteps, "step", step)
    word2vec.main(flags(text, tmp_path / "b", *more))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]

    monkeypatch.delenv("GROUNDUP_DATA", raising=False)  # its scores need no corpus
    again = word2vec.main(["--evaluate_only", "--output_dir", str(tmp_path / "a")])
    assert again["data"] == run["data"]
    published = {k: v for k, v in run["metrics"].items() if k != "words_per_second"}
    assert again["metrics"] == pytest.approx(published)


@pytest.mark.parametrize("more", [[], ["--max_steps=1"]], ids=["many steps", "one step"])
def test_a_rate_that_is_too_high_ends_in_one_line(text, tmp_path, capsys, monkeypatch, more):
    """Seen by the loss of the next step, or by the vectors where there is none."""
    monkeypatch.setattr(word2vec, "STEP_WORDS", 4000)
    more = ["--learning_rate=1e6", "--logging_steps=9", *more]
    with pytest.raises(SystemExit):
        word2vec.main(flags(text, tmp_path / "run", *more))
    assert "lower --learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_flags_that_would_do_nothing_are_refused(text, tmp_path, capsys):
    assert set(word2vec.IGNORED) <= {f.name for f in dataclasses.fields(recipe.RunArguments)}
    refused = {
        ("--lr_scheduler_type=cosine", "--warmup-steps=5"): ["--lr_scheduler_type, --warmup_steps"],
        ("--bf16",): ["--bf16 would do nothing"],
        ("--eval_strategy=steps", "--eval_steps=5"): ["--eval_steps, --eval_strategy would"],
        ("--report_to=none",): ["--report_to"],
        ("--muon_learning_rate=0.1",): ["--muon_learning_rate"],
        ("--per_device_train_batch_size=40",): ["is 40", "multiple of --sharing, which is 32"],
        ("--per_device_train_batch_size=0",): ["is 0", "at least 1"],
        ("--block=48",): ["--sharing is 32", "multiple of --block, which is 48: 48 would do"],
        ("--max_vocab_size=0",): ["--max_vocab_size is 0; it must be at least 1"],
        ("--evaluate_only",): ["holds no model to score"],
    }
    for more, said in refused.items():
        assert_refused(capsys, flags(text, tmp_path / "run", *more), *said, main=word2vec.main)
    assert not (tmp_path / "run").exists()


def test_a_model_of_no_run_is_not_scored(tmp_path, capsys):
    small_vectors(tmp_path)
    asked = ["--evaluate_only", "--output_dir", str(tmp_path)]
    assert_refused(capsys, asked, "metrics.json is missing", main=word2vec.main)


def test_words_read_are_those_of_all_steps(text, tmp_path, monkeypatch):
    monkeypatch.setattr(word2vec, "STEP_WORDS", 5000)
    corpus = words.open_words(text)
    vocabulary = words.count_words(corpus, 5)
    ids = words.encode_words(corpus, vocabulary, tmp_path)
    _, word_args, _, args = word2vec.recipe.parse_arguments(
        flags(text, tmp_path, "--max_steps=4"),
        "word2vec",
        word2vec.WordArguments,
        word2vec.ModelArguments,
        description="",
    )
    model, counts, batch = make(vocab_size=16), vocabulary.counts, args.per_device_train_batch_size
    steps = word2vec.WordSteps(model, ids, counts, word_args, batch, 0.1, args.max_steps)
    assert len(ids) == 12_000 and steps.steps_per_epoch == 3
    assert steps.words_read() == 17_000  # 5,000 + 5,000 + 2,000 + 5,000
    row, left, right = steps.row_of(3)
    assert (row != 0).sum() == 2000 and len(left) == len(right) == len(row) - 4 == 2048
    np.testing.assert_array_equal(row[2:2002], ids[10_000:])
    assert not left[2000:].any() and right[1999] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per_device_train_batch_size", "131072"], "a step reads 65536 words"),
        (["--learning_rate", "nan"], "--learning_rate is nan; it must be 0 or more"),
        (["--learning_rate=-0.1"], "--learning_rate is -0.1; it must be 0 or more"),
        (["--sample", "nan"], "--sample is nan; it must be 0 or more"),
        (["--max_vocab_size", "1"], "vectors need two words"),
        (["--shared_negatives", "100000"], "it must be at most 65536"),
        (["--save_steps", "0.5"], "--save_steps is 0.5; it counts updates here: give at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(flags, message, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("a king and a queen " * 50)
    text = ["--text", str(tmp_path / "book.txt"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        word2vec.main([*text, "--max_steps", "1", *flags])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said


def test_only_vectors_are_scored_as_vectors(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "groundup-rnn"}')
    flags = ["--output_dir", str(tmp_path), "--evaluate_only"]
    for content, message in (
        ('{"model_type": "groundup-rnn"}', "holds a groundup-rnn, and this script scores groundup"),
        ("{", "config.json is damaged, no JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(SystemExit):
            word2vec.main(flags)
        assert message in capsys.readouterr().err
