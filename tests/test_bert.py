"""BERT against transformers' BERT: outputs, gradients, padding; its heads and what it refuses."""

import io
import json
import lzma
import math
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet
import pytest
import torch
from contract import gradients
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from groundup.data_scripts.film_reviews import load_film_reviews
from groundup.data_scripts.glue import HELD_OUT, hold_out, load_glue
from groundup.data_scripts.masking import MaskedBlocks, Specials
from groundup.data_scripts.sources import DataNotFound
from groundup.data_scripts.wordpiece import (
    SPECIAL_TOKENS,
    encode_running,
    learn_pieces,
    pieces_that_go_on,
    specials_of,
    train_wordpiece,
)
from groundup.models.bert import (
    BERTConfig,
    BERTForMaskedLM,
    BERTForSequenceClassification,
    BERTModel,
)
from groundup.models.from_bert import (
    bert_from_transformers,
    tensors_from_transformers,
    transformers_from_bert,
)
from groundup.models.transformer import sinusoidal_positions
from groundup.train import bert
from groundup.train.bert import masked_blocks, pseudo_perplexity

SIZE = {
    "vocab_size": 67,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 16,
    "num_labels": 3,
    # Dropout is off, so that training mode, where only hidden tokens are scored, compares too.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SMALLEST = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
close = {"rtol": 1e-5, "atol": 1e-5}


def make_reference(cls, **options):
    """A small BERT of transformers, all of whose numbers are random."""
    torch.manual_seed(0)
    reference = cls(BertConfig(**(SIZE | options)))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(0, 0.1)
            if "LayerNorm.weight" in name:
                parameter += 1
    return reference.eval()


def text_batch(lengths=(9, 12, 4)) -> dict:
    """Texts of several lengths in two segments, padded on the right."""
    torch.manual_seed(1)
    ids = torch.randint(1, 67, (len(lengths), max(lengths)))
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "token_type_ids": (torch.arange(ids.shape[1]) > 3).long().expand_as(ids),
    }


def hidden_labels(batch) -> torch.Tensor:
    """Every third token is to be guessed."""
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    chosen = real & (torch.arange(ids.shape[1]) % 3 == 1)
    return ids.masked_fill(~chosen, -100)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"hidden_act": "relu", "tie_word_embeddings": False}])
def test_masked_lm_is_that_of_transformers(attention, options):
    reference = make_reference(BertForMaskedLM, **options)
    model = bert_from_transformers(reference)
    assert not model.training
    batch = text_batch()
    real = batch["attention_mask"].bool()
    for one in (reference, model):
        one.set_attn_implementation(attention)
    with torch.no_grad():
        expected = reference(**batch, labels=hidden_labels(batch), output_hidden_states=True)
        found = model(**batch, labels=hidden_labels(batch), output_hidden_states=True)
    assert_close(found.loss, expected.loss, **close)
    assert_close(found.logits[real], expected.logits[real], **close)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(ours[real], theirs[real], **close)
    compare_gradients(reference, model, batch | {"labels": hidden_labels(batch)})


def compare_gradients(reference, model, batch):
    """In training, where a masked-LM scores the hidden tokens alone."""
    theirs = tensors_from_transformers(gradients(reference.train(), batch))
    ours = gradients(model.train(), batch)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        assert gradient.any() or "k_proj.bias" in name
        assert_close(gradient, theirs[name], **close, msg=lambda text, name=name: f"{name}: {text}")


def test_sequence_classification_is_that_of_transformers():
    reference = make_reference(BertForSequenceClassification)
    model = bert_from_transformers(reference)
    batch = text_batch() | {"labels": torch.tensor([2, 0, 1])}
    with torch.no_grad():
        expected, found = reference(**batch), model(**batch)
    assert_close(found.loss, expected.loss, **close)
    assert_close(found.logits, expected.logits, **close)
    compare_gradients(reference, model, batch)


def test_attention_weights_are_those_of_transformers():
    reference = make_reference(BertForMaskedLM)
    model = bert_from_transformers(reference)
    batch = text_batch()
    for one in (reference, model):
        one.set_attn_implementation("eager")
    with torch.no_grad():
        expected = reference(**batch, output_attentions=True).attentions
        found = model(**batch, output_attentions=True).attentions
    assert len(found) == len(expected) == 3
    real = batch["attention_mask"].bool()
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real], **close)


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForSequenceClassification])
def test_there_and_back(cls, tmp_path):
    reference = make_reference(cls)
    reference.save_pretrained(tmp_path)
    model = bert_from_transformers(tmp_path, task=cls.__name__)
    again = transformers_from_bert(model).state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_what_cannot_be_taken_over_is_refused():
    with pytest.raises(ValueError, match="BertForNextSentencePrediction cannot be taken over"):
        bert_from_transformers("folder", task="BertForNextSentencePrediction")
    with pytest.raises(ValueError, match="is a decoder"):
        bert_from_transformers(make_reference(BertForMaskedLM, is_decoder=True))
    with pytest.raises(ValueError, match="gives each text one class"):
        several = {"problem_type": "multi_label_classification"}
        bert_from_transformers(make_reference(BertForSequenceClassification, **several))
    with pytest.raises(ValueError, match="one of at least two classes"):  # a quantity, there
        bert_from_transformers(make_reference(BertForSequenceClassification, num_labels=1))
    with pytest.raises(ValueError, match=r"classifier_dropout of 0\.5"):
        bert_from_transformers(
            make_reference(BertForSequenceClassification, classifier_dropout=0.5)
        )
    with pytest.raises(ValueError, match="BERTModel cannot be given back"):
        transformers_from_bert(BERTModel(BERTConfig()))


def test_in_training_only_hidden_tokens_are_scored():
    batch = text_batch()
    model = bert_from_transformers(make_reference(BertForMaskedLM)).train()
    labels = hidden_labels(batch)
    outputs = model(**batch, labels=labels)
    assert outputs.logits.shape == ((labels != -100).sum(), 67)
    whole = model.eval()(**batch, labels=labels)
    assert_close(outputs.logits, whole.logits[labels != -100], **close)
    assert_close(outputs.loss, whole.loss, **close)


@pytest.mark.parametrize("cls", [BertForMaskedLM, BertForSequenceClassification])
def test_accumulated_batches_are_one_batch(cls, tmp_path):
    """2 x 2 = 4: the gradient is that of the mean, not of the sum."""
    batch = text_batch((9, 9, 9, 9))
    labels = hidden_labels(batch) if cls is BertForMaskedLM else torch.tensor([2, 0, 1, 1])
    rows = [
        {"input_ids": ids, "labels": y} for ids, y in zip(batch["input_ids"], labels, strict=True)
    ]
    found = []
    for size, accumulate in ((4, 1), (2, 2)):
        args = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(bert_from_transformers(make_reference(cls)), args, train_dataset=rows)
        trainer.train()
        found.append(trainer.state.log_history[0]["grad_norm"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_larger_vocabulary_has_a_bias_for_each_token():
    model = bert_from_transformers(make_reference(BertForMaskedLM))
    before = model.head.bias[:67].clone()
    model.resize_token_embeddings(70)
    assert model.head.decoder.weight is model.bert.embeddings.embed_tokens.weight
    assert torch.equal(model.head.bias[:67], before) and len(model.head.bias) == 70
    assert model(input_ids=torch.tensor([[69]])).logits.shape == (1, 1, 70)


def test_what_a_user_can_get_wrong_is_said():
    config = BERTConfig(vocab_size=67, hidden_size=16, num_attention_heads=2, num_labels=2)
    model = BERTForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"129 tokens.*only 128 positions; cut it"):
        model(input_ids=torch.ones(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match=r"from 0 to 1.*there are 0 to 2"):
        model(input_ids=torch.ones(2, 3, dtype=torch.long), labels=torch.tensor([0, 2]))
    for labels in (torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2).long(), torch.ones(2)):
        with pytest.raises(ValueError, match="one class for each text"):
            model(input_ids=torch.ones(2, 3, dtype=torch.long), labels=labels)
    with pytest.raises(ValueError, match=r"labels must be below 67.*there is 67"):
        BERTForMaskedLM(config)(torch.ones(1, 2, dtype=torch.long), labels=torch.tensor([[1, 67]]))
    with pytest.raises(ValueError, match=r"not negative, but for -100; there is -1"):
        BERTForMaskedLM(config)(
            torch.ones(1, 2, dtype=torch.long), labels=torch.tensor([[-100, -1]])
        )
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        BERTForMaskedLM(config)()
    with pytest.raises(ValueError, match="type_vocab_size is 0"):
        BERTConfig(type_vocab_size=0)
    with pytest.raises(ValueError, match="nearest number of heads that fits is 4"):
        BERTConfig(hidden_size=192, num_attention_heads=5)
    with pytest.raises(ValueError, match="places are learned"):
        BERTConfig(position_embedding_type="rotary")
    with pytest.raises(ValueError, match="one of at least two classes"):
        BERTForSequenceClassification(BERTConfig(**SMALLEST, num_labels=1))
    with pytest.raises(ValueError, match="one of at least two classes"):
        BERTForSequenceClassification(BERTConfig(**SMALLEST, problem_type="regression"))


# ----------------------------------------------------------------------------------------- blanks

SPECIALS = Specials(cls=2, sep=3, mask=4, first_word=5, vocab_size=1000)


def many_blocks(**options) -> tuple[MaskedBlocks, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of a long random text; their tokens with blanks, labels, and the text itself."""
    ids = np.random.default_rng(0).integers(5, 1000, 400 * 62).astype(np.uint16)
    blocks = MaskedBlocks(ids, SPECIALS, block_size=64, seed=0, **options)
    items = blocks.__getitems__(range(len(blocks)))
    tokens, labels = (torch.stack([x[key] for x in items]) for key in ("input_ids", "labels"))
    return blocks, tokens, labels, torch.from_numpy(ids.astype(np.int64)).view(400, 62)


def test_blanks_are_15_percent_of_which_80_10_10():
    _, tokens, labels, text = many_blocks()
    assert (tokens[:, 0] == 2).all() and (tokens[:, -1] == 3).all()
    inner, labels = tokens[:, 1:-1], labels[:, 1:-1]
    chosen = labels != -100
    assert torch.equal(labels[chosen], text[chosen]) and torch.equal(inner[~chosen], text[~chosen])
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)
    masked, kept = inner[chosen] == 4, inner[chosen] == text[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)
    other = inner[chosen][~masked & ~kept]
    assert other.min() >= 5 and len(other.unique()) > 200  # any word, but no special token


def test_blanks_are_others_in_each_epoch_and_the_same_when_asked_again():
    blocks, tokens, _, _ = many_blocks()
    again = blocks.__getitems__([(0, i) for i in range(400)])
    later = blocks.__getitems__([(1, i) for i in range(400)])
    assert torch.equal(torch.stack([x["input_ids"] for x in again]), tokens)
    assert not torch.equal(torch.stack([x["input_ids"] for x in later]), tokens)
    other_seed = MaskedBlocks(blocks.ids, SPECIALS, 64, seed=1)
    assert not torch.equal(other_seed[0]["input_ids"], tokens[0])


def test_blanks_do_not_depend_on_the_batch():
    blocks, tokens, labels, _ = many_blocks()
    assert not torch.equal(labels[3] == -100, labels[4] == -100)  # nor are they alike in all
    for some in ([3], [7, 3], range(2, 9)):
        for i, item in zip(some, blocks.__getitems__(some), strict=True):
            assert torch.equal(item["input_ids"], tokens[i])
            assert torch.equal(item["labels"], labels[i])


def test_whole_words_are_blanked_with_all_of_their_pieces():
    goes_on = np.random.default_rng(1).random(400 * 62) < 0.5
    _, _, labels, _ = many_blocks(goes_on=goes_on)
    chosen, goes_on = labels[:, 1:-1] != -100, torch.from_numpy(goes_on).view(400, 62)
    same_word = goes_on[:, 1:]
    assert torch.equal(chosen[:, 1:][same_word], chosen[:, :-1][same_word])
    assert not torch.equal(chosen[:, 1:], chosen[:, :-1])
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.02)


def test_more_blanks_are_those_that_fewer_have_and_others():
    _, _, fewer, _ = many_blocks()
    _, tokens, more, text = many_blocks(blank_share=0.4)
    inner = more[:, 1:-1]
    assert (inner != -100).float().mean() == pytest.approx(0.4, abs=0.01)
    assert (more != -100)[fewer != -100].all()
    assert torch.equal(tokens[:, 1:-1][inner == -100], text[inner == -100])


def test_special_tokens_in_the_text_are_never_blanks():
    ids = np.full(620, 3, dtype=np.uint16)
    ids[::2] = 9
    items = MaskedBlocks(ids, SPECIALS, 64, seed=0).__getitems__(range(10))
    labels = torch.stack([x["labels"] for x in items])
    assert set(labels.unique().tolist()) == {-100, 9}


def test_wrong_arguments_of_masked_blocks():
    with pytest.raises(ValueError, match="the text has 61 tokens, and a block 62"):
        MaskedBlocks(np.arange(61), SPECIALS, 64, seed=0)
    with pytest.raises(ValueError, match="block_size is 2"):
        MaskedBlocks(np.arange(61), SPECIALS, 2, seed=0)
    with pytest.raises(ValueError, match="blank_share is 1; give"):
        MaskedBlocks(np.arange(62), SPECIALS, 64, seed=0, blank_share=1)
    blocks = MaskedBlocks(np.arange(62), SPECIALS, 64, seed=0)
    with pytest.raises(IndexError):
        blocks[1]


# -------------------------------------------------------------------------------------- WordPiece

WORDS = ["the", "old", "man", "sat", "by", "a", "fire", "told", "of", "ships", "wolves", "kings"]
WORDS += ["he", "had", "known", "."]


def toy_text(sentences: int = 400) -> str:
    """Sentences of few words, in which words follow each other in pairs."""
    draw = np.random.default_rng(0)
    starts = draw.integers(0, len(WORDS) - 1, (sentences, 5))
    return "\n".join(" ".join(f"{WORDS[i]} {WORDS[i + 1]}" for i in row) for row in starts)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([toy_text()], 160, 32)


def test_wordpiece_is_lower_case_and_splits_what_it_does_not_know(tokenizer):
    inputs = tokenizer("The OLD män. Kingships", "a ship")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"])
    assert tokens[:5] == ["[CLS]", "the", "old", "man", "."] and tokens.count("[SEP]") == 2
    assert any(token.startswith("##") for token in tokens)
    assert inputs["token_type_ids"][-1] == 1 and inputs["token_type_ids"][0] == 0
    assert list(range(5)) == tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert tokenizer("\N{SNOWMAN}")["input_ids"][1] == tokenizer.unk_token_id
    assert len(tokenizer("the " * 50, truncation=True)["input_ids"]) == 32


def test_training_a_tokenizer_is_deterministic(tokenizer):
    """Each training has hash tables of another order."""
    again = train_wordpiece([toy_text()], 160, 32)
    assert again.get_vocab() == tokenizer.get_vocab()
    ties = Counter({"aba": 2, "bab": 2, "abab": 2, "baba": 2, "cab": 2, "bac": 2})
    first, *others = (learn_pieces(ties, 12) for _ in range(5))
    assert all(other == first for other in others)
    assert {"a", "b", "c", "##a", "##b", "##c"} < set(first) and len(first) == 12


def test_running_text_begins_each_document_and_knows_its_words(tokenizer):
    ids = encode_running(tokenizer, ["the man", "kingships ."])
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert tokens[:4] == ["[SEP]", "the", "man", "[SEP]"] and tokens[-1] == "."
    goes_on = pieces_that_go_on(tokenizer, ids)
    assert goes_on.tolist() == [token.startswith("##") for token in tokens] and goes_on.any()


def test_wrong_arguments_of_train_wordpiece():
    with pytest.raises(ValueError, match="empty text"):
        train_wordpiece([" ", ""], 200, 32)
    with pytest.raises(ValueError, match="needs at least 100"):
        train_wordpiece(["text"], 20, 32)
    with pytest.raises(ValueError, match=r"the text has 98 letters.*at least 103"):
        train_wordpiece(["".join(chr(0x4E00 + i) for i in range(98))], 100, 32)


# ------------------------------------------------------------------------------------------- GLUE


def sentences(count: int) -> list[tuple[str, int]]:
    """Sentences about wolves, which are bad, and kings, who are good."""
    return [(f"he knew {('wolves', 'kings')[i % 2]} {i}", i % 2) for i in range(count)]


def test_attention_that_keeps_no_weights_is_not_asked_for_them():
    model = BERTForMaskedLM(BERTConfig(**SMALLEST))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="sdpa attention keeps no weights"):
        model(torch.tensor([[5, 6]]), output_attentions=True)


def test_a_text_without_tokens_is_refused():
    model = BERTForSequenceClassification(BERTConfig(**SMALLEST))
    with pytest.raises(ValueError, match="a text is empty"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="a text is empty"):
        model(torch.tensor([[5, 6], [5, 6]]), torch.tensor([[1, 1], [0, 0]]))


def test_places_begin_as_loud_waves():
    model = BERTModel(BERTConfig(**SMALLEST | {"hidden_size": 64, "initializer_range": 0.1}))
    places = model.embeddings.embed_positions.weight
    positions = torch.arange(len(places))
    assert_close(places.data, 0.3 * 2**0.5 * sinusoidal_positions(positions, 64))
    assert places.square().mean().sqrt().item() == pytest.approx(0.3, rel=1e-4)


def test_dropout_has_the_names_of_transformers_too():
    config = BERTConfig(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    assert (config.hidden_dropout, config.attention_dropout) == (0.1, 0.2)
    assert BERTConfig.from_dict(config.to_dict()).hidden_dropout == 0.1


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory):
    """SST-2 and CoLA as they lie in data folders, with other sentences."""
    folder = tmp_path_factory.mktemp("glue")
    for name in ("sst2", "cola"):
        (folder / name).mkdir()
    for name, count in (("train", 96), ("dev", 20), ("test", 24)):
        rows = "".join(f"{text}\t{label}\n" for text, label in sentences(count))
        data = lzma.compress(f"sentence\tlabel\n{rows}".encode())
        (folder / "sst2" / f"{name}.tsv.xz").write_bytes(data)
    with zipfile.ZipFile(folder / "cola" / "cola_public.zip", "w") as archive:
        for name, count in (
            ("in_domain_train", 50),
            ("in_domain_dev", 7),
            ("out_of_domain_dev", 4),
        ):
            rows = "".join(f"gj04\t{label}\t\t{text}\n" for text, label in sentences(count))
            archive.writestr(f"cola_public/raw/{name}.tsv", rows)
    return folder


def test_glue_has_its_splits_and_labels(glue_dir):
    sst2, cola = (load_glue(task, glue_dir) for task in ("sst2", "cola"))
    assert {split: len(rows) for split, rows in sst2.items()} == {**{"train": 116, "test": 24}}
    assert {split: len(rows) for split, rows in cola.items()} == {**{"train": 50, "test": 11}}
    assert sst2["test"][1] == {"text": "he knew kings 1", "label": 1}
    assert sst2["train"].features["label"].names == ["negative", "positive"]
    assert sst2["train"].info.dataset_name == "sst2"


def test_held_out_sentences_are_long_and_unknown_to_the_others():
    texts = [
        "a b c d e",
        "b c d e",
        "c d e",
        "f g h i j k",
        "g h i j",
        "x y z",
        "a b c",
        "l m n o p",
    ]
    rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    parts = hold_out(rows, 3, min_words=5)
    assert parts["validation"]["text"] == ["a b c d e", "f g h i j k", "l m n o p"]
    assert parts["train"]["text"] == ["c d e", "x y z", "a b c"]
    with pytest.raises(ValueError, match="at least 5 words are to be held out, and there are 3"):
        hold_out(rows, 4, min_words=5)


def damaged_zips(name: str) -> Iterator[bytes]:
    """Archives of one file: of a kind of block that deflate has not; that looks encrypted."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, "a" * 99)
    whole = packed.getvalue()
    # Behind the file's header; and the flags in the list of files.
    for place, bits in ((30 + len(name), 0b110), (whole.index(b"PK\x01\x02") + 8, 1)):
        data = bytearray(whole)
        data[place] |= bits
        yield bytes(data)


def test_glue_that_is_broken_or_missing_is_said(glue_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there are: sst2, cola"):
        load_glue("mnli", glue_dir)
    (tmp_path / "cola_public.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged, or not"):
        load_glue("cola", tmp_path)
    for data in damaged_zips("cola_public/raw/in_domain_dev.tsv"):
        (tmp_path / "cola_public.zip").write_bytes(data)
        with pytest.raises(ValueError, match="is damaged, or not"):
            load_glue("cola", tmp_path)
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv.xz").write_bytes(lzma.compress(b"text\tlabel\na\tb\n"))
    with pytest.raises(ValueError, match="must have a sentence and a label"):
        load_glue("sst2", tmp_path)
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataNotFound, match="connect to the Hub"):
        load_glue("sst2")


def film_reviews_in(folder, files, texts=None):
    """A folder with reviews of these names, as a table."""
    rows = {"text": texts or [f"the film {file} is long ." for file in files], "file": files}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "train.parquet")
    return folder


def test_film_reviews_are_cut_by_their_numbers(tmp_path):
    files = ["neg/cv000_1.txt", "neg/cv900_2.txt", "pos/cv899_3.txt", "pos/cv999_4.txt"]
    reviews = load_film_reviews(film_reviews_in(tmp_path, files, list("abcd")))
    assert reviews["train"].to_dict() == {"text": ["a", "c"]}
    assert reviews["validation"].to_dict() == {"text": ["b", "d"]}
    (tmp_path / "train.parquet").unlink()
    with zipfile.ZipFile(tmp_path / "movie_reviews.zip", "w") as archive:
        for file, text in zip(["README", *reversed(files)], "rdcba", strict=True):
            archive.writestr(f"movie_reviews/{file}", text)
    assert load_film_reviews(tmp_path)["train"].to_dict() == reviews["train"].to_dict()


def test_film_reviews_that_are_broken_or_missing_are_said(tmp_path):
    with pytest.raises(
        DataNotFound, match=f"{tmp_path} holds no train.parquet or movie_reviews.zip"
    ):
        load_film_reviews(tmp_path)
    (tmp_path / "movie_reviews.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged, or no archive"):
        load_film_reviews(tmp_path)
    for data in damaged_zips("neg/cv000_1.txt"):
        (tmp_path / "movie_reviews.zip").write_bytes(data)
        with pytest.raises(ValueError, match="is damaged, or no archive"):
            load_film_reviews(tmp_path)
    with pytest.raises(ValueError, match="must have reviews of files cv000"):
        load_film_reviews(film_reviews_in(tmp_path, ["a", "b"]))
    with pytest.raises(ValueError, match="both strings"):
        load_film_reviews(film_reviews_in(tmp_path, ["neg/cv000_1.txt", "b"], ["a", None]))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="cannot be read as reviews"):
        load_film_reviews(tmp_path)


# ------------------------------------------------------------------------------------------ a run

TINY = """
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
max_position_embeddings: 32
tokenizer_vocab_size: 160
whole_words: true
blank_share: 0.2
hidden_dropout: 0.1
max_steps: 60
per_device_train_batch_size: 16
learning_rate: 3e-3
warmup_steps: 6
save_steps: 20
logging_steps: 10
disable_tqdm: true
"""
TINY_TASK = """
task: sst2
max_steps: 60
per_device_train_batch_size: 16
learning_rate: 3e-3
save_steps: 20
logging_steps: 10
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny run into this folder."""
    files = tmp_path_factory.mktemp("files")
    (files / "toy.txt").write_text(toy_text())
    (files / "tiny.yaml").write_text(TINY)

    def make(folder, *more: str) -> list[str]:
        flags = ["--config", str(files / "tiny.yaml"), "--text", str(files / "toy.txt")]
        return [*flags, "--output_dir", str(folder), *more]

    return make


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a whole run that fills in blanks. Only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    bert.main(flags(folder))
    return folder


@pytest.fixture(scope="module")
def task_flags(finished, glue_dir, tmp_path_factory):
    """`task_flags(folder, *more)`: the flags of a tiny run on sentences."""
    config = tmp_path_factory.mktemp("task") / "task.yaml"
    config.write_text(TINY_TASK)

    def make(folder, *more: str) -> list[str]:
        flags = ["--config", str(config), "--base_model", str(finished)]
        return [*flags, "--data_dir", str(glue_dir), "--output_dir", str(folder), *more]

    return make


def test_a_run_on_blanks_leaves_what_it_should(finished):
    files = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {name for name in files if not name.startswith("checkpoint-")} == {
        *("model.safetensors", "config.json", "bert.py", "transformer.py", "figures/loss.png"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "metrics.json", "settings.json"),
    }
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    # It has learned which words there are, if not yet where.
    assert metrics["nats_per_blank"] < 3.2 < math.log(100)
    assert 1 < metrics["pseudo_perplexity"] < 20
    card = (finished / "README.md").read_text()
    assert "It fills in blanks" in card and "[MASK]" in card and "fill-mask" in card
    assert "skip-gram" not in card
    assert "In training 20 % of the tokens are blanks, in the scores 15%" in card


def test_share_and_words_of_blanks_are_those_of_training(flags, tmp_path, monkeypatch):
    made = []

    class Noted(MaskedBlocks):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append((self.seed, self.blank_share, self.goes_on is not None))

    monkeypatch.setattr(bert, "MaskedBlocks", Noted)
    bert.main(flags(tmp_path / "run", "--max_steps", "1", "--seed", "7"))
    assert made == [(7, 0.2, True), (0, 0.15, False)]


def test_word_pieces_begin_as_vectors_that_skip_gram_learns():
    """Of two words that stand in the same places, and of one that stands elsewhere."""
    draw = np.random.default_rng(0)
    others = [first + rest for first in "bcdfghjklmnpqrstvwxz" for rest in ("ana", "elo", "iru")]
    text = []
    for _ in range(4000):
        text += ["old", str(draw.choice(["cat", "dog"])), "sat", *draw.choice(others, 9)]
        text += ["new", "ship", "sank", *draw.choice(others, 9)]
    tokenizer = train_wordpiece([" ".join(text)], 200, 32)
    blocks = bert.masked_blocks(tokenizer, [" ".join(text)], 32, 0, False, 0.15)
    torch.manual_seed(0)
    model = BERTForMaskedLM(
        BERTConfig(**SMALLEST | {"vocab_size": len(tokenizer), "hidden_size": 32})
    )
    before = model.get_input_embeddings().weight.detach().clone()
    assert bert.begin_as_vectors(model, blocks, passes=3, disable_tqdm=True) > 0
    table = model.get_input_embeddings().weight.detach()
    assert torch.equal(table[:5], before[:5])  # [MASK] and the like are no words
    assert table[5:].square().mean().sqrt().item() == pytest.approx(0.06)  # as places
    cat, dog, ship = table[tokenizer.convert_tokens_to_ids(["cat", "dog", "ship"])]
    near, far = (torch.cosine_similarity(cat, other, dim=0) for other in (dog, ship))
    assert near > 0.7 and near > far + 0.3
    assert model.head.decoder.weight is model.get_input_embeddings().weight


def test_a_run_learns_vectors_once(flags, tmp_path, monkeypatch):
    """It counts their seconds; one that is resumed has them, and ends with the same bits."""
    learn, learned = bert.begin_as_vectors, []

    def noted(*args):
        learned.append(learn(*args))
        return 1000 + learned[-1]

    monkeypatch.setattr(bert, "begin_as_vectors", noted)
    more = ["--vector_passes=2", "--max_steps=4", "--save_steps=2"]
    run = bert.main(flags(tmp_path / "run", *more))
    assert len(learned) == 1 and 1000 < run["train_seconds"] < 1100
    card = tmp_path / "run" / "README.md"
    assert "vectors that skip-gram had learned from the same text, in 2 passes" in card.read_text()
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("metrics.json", "README.md", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = bert.main(flags(tmp_path / "run", *more))
    assert len(learned) == 1 and again["train_seconds"] > 1000
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_skip_gram_of_too_few_word_pieces_is_refused():
    text = "the cat sat by the fire . the dog ate the bread . " * 2000
    tokenizer = train_wordpiece([text], 100, 32)
    blocks = bert.masked_blocks(tokenizer, [text], 32, 0, False, 0.15)
    model = BERTForMaskedLM(BERTConfig(**SMALLEST | {"vocab_size": len(tokenizer)}))
    with pytest.raises(ValueError, match="give --vector_passes 0"):
        bert.begin_as_vectors(model, blocks, passes=30, disable_tqdm=True)


def test_a_card_has_guesses_of_texts_that_the_model_can_read_whole(finished):
    model = BERTForMaskedLM.from_pretrained(finished)  # of 32 tokens at most
    texts = ["the old [MASK] sat by a fire .", "the old [MASK] " + 30 * "sat "]
    table = bert.guesses(model, AutoTokenizer.from_pretrained(finished), texts)
    assert texts[0] in table and texts[1] not in table


def test_a_stopped_run_on_blanks_ends_with_the_same_bits(flags, finished, tmp_path, capsys):
    bert.main(flags(tmp_path / "run"))
    for name in ("metrics.json", "README.md", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    newest = max((tmp_path / "run").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    bert.main(flags(tmp_path / "run"))
    assert f"resuming from {tmp_path / 'run' / 'checkpoint-'}" in capsys.readouterr().out
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_evaluate_only_gives_the_scores_of_the_run(flags, finished):
    again = bert.main(flags(finished, "--evaluate_only"))
    run = json.loads((finished / "metrics.json").read_text())
    for name, value in run["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-4)


@pytest.fixture(scope="module")
def go_on(finished, tmp_path_factory):
    """`go_on(folder, *more)`: the flags of a run that goes on with blanks of film reviews."""
    files = tmp_path_factory.mktemp("reviews")
    film_reviews_in(files, [f"neg/cv{number:03}_.txt" for number in range(0, 1000, 5)])
    (files / "on.yaml").write_text("corpus: film_reviews\nmax_steps: 1\nlearning_rate: 1.0e-9\n")

    def make(folder, *more: str) -> list[str]:
        flags = ["--config", str(files / "on.yaml"), "--base_model", str(finished)]
        flags += ["--data_dir", str(files), "--disable_tqdm", "true"]
        return [*flags, "--output_dir", str(folder), *more]

    return make


def test_blanks_go_on_from_a_trained_model(go_on, finished, tmp_path):
    """It begins where the other ended, with its tokenizer."""
    folder = tmp_path / "run"
    metrics = bert.main(go_on(folder))["metrics"]
    assert metrics["masked_accuracy_before"] == pytest.approx(metrics["masked_accuracy"], abs=0.01)
    assert (folder / "tokenizer.json").read_text() == (finished / "tokenizer.json").read_text()
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, finished))
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    card = (folder / "README.md").read_text()
    assert f"began with the weights of `{finished.name}`" in card
    assert "has read 180 film reviews" in card and "movie_reviews" in card


def test_blanks_do_not_go_on_from_what_has_none(go_on, task_flags, finished, tmp_path, capsys):
    bert.main(task_flags(tmp_path / "judge", "--max_steps", "1"))
    for more, words in (
        (["--hidden_size", "64"], "hidden_size is 32 in"),
        (["--text", "a.txt"], "--text and --corpus are two sources"),
        (["--base_model", str(tmp_path / "judge")], "holds a BERTForSequenceClassification"),
    ):
        with pytest.raises(SystemExit):
            bert.main(go_on(tmp_path / "run", *more))
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_blanks_want_a_tokenizer_that_begins_as_ours(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished)
    assert specials_of(tokenizer).mask == 4
    vocabulary = {token: i for i, token in enumerate(("a", *SPECIAL_TOKENS))}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordPiece(vocabulary)))
    with pytest.raises(ValueError, match=r"must begin with \[PAD\], \[UNK\]"):
        specials_of(other)


def test_blanks_are_of_a_text_that_the_tokenizer_knows(tokenizer):
    with pytest.raises(ValueError, match=r"knows 0% of this text.*leave out --base_model"):
        masked_blocks(tokenizer, ["Слово за слово"] * 20, 16, 0, False, 0.15)


def test_pipelines_fill_in_and_judge(finished, task_flags, tmp_path, capsys, monkeypatch):
    best = pipeline("fill-mask", str(finished))("the old [MASK] sat by a fire .", top_k=3)
    assert {guess["token_str"] for guess in best} < set(WORDS)
    run = bert.main(task_flags(tmp_path / "run"))
    assert run["metrics"]["accuracy"] > 0.9 and run["metrics"]["matthews_correlation"] > 0.8
    card = (tmp_path / "run" / "README.md").read_text()
    assert "split: validation" in card and "config: sst2" in card and "the commonest class" in card
    with pytest.raises(SystemExit):
        bert.main(task_flags(tmp_path / "run", "--task", "cola", "--evaluate_only"))
    assert "was not trained for --task cola" in capsys.readouterr().err
    saved = Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json"))
    assert saved.truncation is None and saved.padding is None
    judge = pipeline("text-classification", str(tmp_path / "run"))
    labels = [answer["label"] for answer in judge(["he knew kings 1", "he had known wolves . 2"])]
    assert labels == ["positive", "negative"]
    texts = [
        "he knew kings 1",
        "he had known wolves . 2",
        "kings 1",
        "he knew 2",
        "he knew . 1",
    ]
    monkeypatch.setattr(bert, "JUDGED_AT_ONCE", 2)
    lines = bert.mistakes(
        BERTForSequenceClassification.from_pretrained(tmp_path / "run"),
        AutoTokenizer.from_pretrained(tmp_path / "run"),
        Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1, 1]}),
    ).splitlines()[2:]
    found = {text: name for name, _, text in (line.strip("| ").split(" | ") for line in lines)}
    assert found == {texts[0]: "positive", texts[1]: "negative", texts[2]: "positive"}
    shares = [int(line.split(" | ")[1].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "negative or positive" in card and "taken for" in card and "nyu-mll/glue" in card


def test_lora_trains_a_fifth_at_most_and_leaves_an_adapter(
    task_flags, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(HELD_OUT, "sst2", (20, 4))
    more = ["--lora_rank=4", "--split=validation", "--max_steps=150", "--learning_rate=3e-3"]
    run = bert.main(task_flags(tmp_path / "run", *more))
    assert run["metrics"]["accuracy"] > 0.7
    said = capsys.readouterr().out.split(" parameters to train")[0].split()[-1]
    trained = int(said.replace(",", ""))
    base = BERTForSequenceClassification.from_pretrained(finished, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    learned = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert trained == sum(tensor.numel() for tensor in learned.values())
    assert 0 < trained < 0.2 * base.num_parameters()
    before, after = (load_file(f / "model.safetensors") for f in (finished, tmp_path / "run"))
    untouched = "bert.embeddings.embed_tokens.weight"  # LoRA's products are merged into others
    assert torch.equal(before[untouched], after[untouched])
    merged = BERTForSequenceClassification.from_pretrained(tmp_path / "run", dtype=torch.float32)
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    assert_close(adapted.eval()(ids).logits, merged.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_random_weights_take_only_the_shape(task_flags, finished, tmp_path):
    bert.main(task_flags(tmp_path / "run", "--random_weights", "--max_steps", "1"))
    before, after = (load_file(f / "model.safetensors") for f in (finished, tmp_path / "run"))
    name = "bert.layers.0.mlp.up_proj.weight"
    assert before[name].shape == after[name].shape
    assert (before[name] - after[name]).abs().mean() > 0.01


def test_pseudo_perplexity_is_that_of_one_blank_at_a_time(finished):
    model = BERTForMaskedLM.from_pretrained(finished, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(5, 60, 30).astype(np.uint16)
    specials = Specials(2, 3, 4, 5, model.config.vocab_size)
    blocks = MaskedBlocks(ids, specials, block_size=17, seed=0)
    nats = []
    for block in ids.reshape(2, 15).astype(np.int64):
        whole = torch.tensor([2, *block, 3])
        for place in range(1, 16):
            blanked = whole.clone()
            blanked[place] = 4
            with torch.no_grad():
                nats.append(-model(blanked[None]).logits[0, place].log_softmax(-1)[whole[place]])
    expected = math.exp(torch.stack(nats).mean())
    assert pseudo_perplexity(model, blocks) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--task", "mnli"], "--task mnli is unknown: give blanks, sst2, cola"),
        (["--split", "train"], "--split train is unknown"),
        (["--vector_passes=-1"], "--vector_passes is -1; it must be 0 or more"),
        (["--blank_share", "1"], "blank_share is 1.0; give 0.01 or more"),
        (["--task", "sst2"], "--blank_share is for --task blanks"),
        (["--random_weights"], "--random_weights is for --task sst2"),
        (["--split", "validation"], "--split is for --task sst2"),
        (["--corpus", "french"], "--corpus french is unknown: give english or film_reviews"),
        (["--base_model", "pretrained/bert"], "leave out --tokenizer_vocab_size"),
        (["--tokenizer_vocab_size", "20"], "WordPiece needs at least 100"),
        (["--max_position_embeddings", "2"], "block_size is 2"),
    ],
)
def test_a_mistake_is_one_line(flags, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        bert.main(flags(tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_task_needs_a_model_to_go_on_from(glue_dir, finished, tmp_path, capsys):
    common = ["--task", "sst2", "--data_dir", str(glue_dir), "--output_dir", str(tmp_path / "run")]
    common += ["--eval_strategy", "no"]
    for more, words in (
        ([], "name it with --base_model"),
        (["--base_model", str(tmp_path)], "no model at"),
        (["--base_model", str(finished), "--random_weights", "--lora_rank=2"], "--lora_rank chan"),
        (["--base_model", str(finished), "--eval_strategy=steps"], "give --split validation, or"),
        # Before any data is read, of which there is none in that folder.
        (["--base_model", str(finished), "--hidden_size=8", "--data_dir=no"], "cannot become 8"),
    ):
        with pytest.raises(SystemExit):
            bert.main([*common, *more])
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_a_model_of_another_task_is_not_scored(glue_dir, finished, capsys):
    """Its head would be random."""
    flags = ["--task", "sst2", "--base_model", str(finished), "--data_dir", str(glue_dir)]
    with pytest.raises(SystemExit):
        bert.main([*flags, "--output_dir", str(finished), "--evaluate_only"])
    assert "holds a BERTForMaskedLM, and this task needs a" in capsys.readouterr().err


def test_it_is_a_sentence_encoder_through_sentence_transformers(finished, tmp_path):
    """As the card says; also with weights in bf16."""
    from sentence_transformers import SentenceTransformer  # slow to import, and one test needs it

    sentences = ["the old man", "he had known kings and ships .", "wolves " * 50]
    assert "SentenceTransformer(" in (finished / "README.md").read_text()
    encoder = SentenceTransformer(str(finished), trust_remote_code=True)
    found = torch.from_numpy(encoder.encode(sentences, normalize_embeddings=True))
    model = BERTModel.from_pretrained(finished, dtype=torch.float32).eval()
    for sentence, vector in zip(sentences, found, strict=True):
        inputs = encoder.tokenizer(sentence, truncation=True, return_tensors="pt")
        expected = model(**inputs).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(expected, dim=0)
        assert_close(vector, expected.detach(), rtol=1e-4, atol=1e-5)
    model.bfloat16().save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    encoder = SentenceTransformer(str(tmp_path), trust_remote_code=True)
    short = torch.from_numpy(encoder.encode(sentences, normalize_embeddings=True))
    assert_close(short, found, rtol=0, atol=0.05)
