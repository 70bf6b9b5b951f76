"""WordPiece: BERT's tokens, words and pieces of words (Schuster and Nakajima 2012; Devlin 2018).

    Marley's ghost was undeniable.   ->   marley ' s ghost was und ##en ##iable .

Capitals and accents are lost, as in "uncased" BERT: so a small vocabulary goes further. A piece
that goes on with a word begins with ##. A word with a character that the training text does not
have is [UNK] as a whole.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from groundup.data_scripts.masking import Specials
from groundup.data_scripts.tokenization import encode_documents

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLS, SEP, MASK)  # their ids are 0 to 4
GOES_ON = "##"
# Where the last two planes of Unicode begin, which are for private use, and what fits into them.
INSIDE, NUM_INSIDE = 0xF0000, 0x20000
MIN_VOCABULARY = 100


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer made from texts; it puts [CLS] before and [SEP] behind a text.

    Args:
        texts: the training documents.
        vocab_size: number of tokens, with the five special ones; a short text may give fewer.
        max_length: the longest text in tokens, to which `truncation=True` cuts.

    Raises:
        ValueError: no text, or a vocabulary too small for WordPiece or for the text's letters.
    """
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise ValueError("a tokenizer cannot be made from an empty text")
    if vocab_size < MIN_VOCABULARY:
        raise ValueError(f"vocab_size is {vocab_size}; WordPiece needs at least {MIN_VOCABULARY}")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word
        for text in texts
        for line in text.split("\n")
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(line))
    )
    pieces = learn_pieces(counts, vocab_size - len(SPECIAL_TOKENS))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.WordPiece(prefix=GOES_ON)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def learn_pieces(counts: Counter, number: int) -> list[str]:
    """The pieces that words are best made of, by merging what stands together most often.

    `tokenizers` has a trainer for WordPiece, but what it learns changes a little from process to
    process: it numbers the pieces that go on with a word in the order of a hash table, and ties go
    by number. Its trainer for byte-pair encoding does not, so letters inside words become letters
    of their own here, and are turned back after.

    Args:
        counts: how often each word occurs.
        number: of pieces; fewer where the words give no more.

    Raises:
        ValueError: each letter is a piece, and there are more of them than that.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=number, show_progress=False)
    marked = (
        " ".join(count * [_mark(word)])
        for word, count in sorted(counts.items())
        if all(ord(letter) < NUM_INSIDE for letter in word)
    )
    tokenizer.train_from_iterator(marked, trainer)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if len(by_id) > number:
        raise ValueError(
            f"the text has {len(by_id)} letters, at the beginning of a word or in it; give a "
            f"vocab_size of at least {len(by_id) + len(SPECIAL_TOKENS)}"
        )
    return [_unmark(token) for token, _ in by_id]


def _mark(word: str) -> str:
    """The same word with letters for private use, but for the first."""
    return word[0] + "".join(chr(ord(letter) + INSIDE) for letter in word[1:])


def _unmark(token: str) -> str:
    letters = "".join(chr(ord(letter) % INSIDE) for letter in token)
    return GOES_ON * (ord(token[0]) >= INSIDE) + letters


def specials_of(tokenizer: PreTrainedTokenizerFast) -> Specials:
    """The ids of a WordPiece tokenizer that are no text.

    Raises:
        ValueError: they are not the first five, as `train_wordpiece` has them.
    """
    if tuple(tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS)))) != SPECIAL_TOKENS:
        raise ValueError(f"the tokenizer must begin with {', '.join(SPECIAL_TOKENS)}")
    return Specials(
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        first_word=len(SPECIAL_TOKENS),
        vocab_size=len(tokenizer),
    )


def encode_running(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> np.ndarray:
    """All documents as one row of ids, [SEP] before each: (tokens,), uint16 or int32."""
    return encode_documents(tokenizer, texts, tokenizer.sep_token_id)


def pieces_that_go_on(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> np.ndarray:
    """(tokens,), bool: True where a token is a piece of the word before it."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return np.array([token.startswith(GOES_ON) for token in tokens])[ids]
