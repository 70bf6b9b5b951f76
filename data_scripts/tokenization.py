"""Text to tokens: tokenizers made from the training text, and the blocks that a model reads.

Three kinds of tokenizer, all without loss: what is encoded decodes to the same text.

- `characters`: a token is a character of the training text. (Of another text, characters that
  the training text does not have are lost.)
- `bpe`: byte-level byte-pair encoding, as in GPT-2 (Sennrich et al., 2016; Radford et al., 2019).
- `unigram`: a unigram language model's pieces (Kudo, 2018), over bytes too.

All have one special token, `<|endoftext|>`, with id 0. It stands before every document, so a model
is asked for the first character too, and can start a text from nothing. As in GPT-2 it is
beginning, end, padding and unknown token in one.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
KINDS = ("characters", "bpe", "unigram")
BYTE_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MIN_BYTE_VOCABULARY = len(BYTE_ALPHABET) + 1  # 256 bytes and the special token
# `tokenizers` takes hundreds of bytes of memory per character: long documents go in pieces.
PIECE_CHARACTERS = 4096
PIECES_PER_BATCH = 128
IGNORED_LABEL = -100  # what Hugging Face losses leave out


def train_tokenizer(
    kind: str, texts: str | Iterable[str], vocab_size: int | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer made from texts, which saves and loads as any other (`AutoTokenizer`).

    Args:
        kind: "characters", "bpe" or "unigram".
        texts: the training documents.
        vocab_size: the number of tokens, with the special one; at least 257 for "bpe" and
            "unigram", which may end with fewer if the text is short. Not for "characters", whose
            vocabulary is what the text has.

    Raises:
        ValueError: an unknown kind, no text, or a `vocab_size` that the kind cannot have.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of tokenizer {kind!r}; there are: {', '.join(KINDS)}")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not any(texts):
        raise ValueError("a tokenizer cannot be made from an empty text")
    if kind == "characters":
        if vocab_size is not None:
            raise ValueError(
                f"a tokenizer of characters has as many tokens as the text has characters: leave "
                f"vocab_size out (it is {vocab_size})"
            )
        tokenizer = _characters(texts)
    else:
        if vocab_size is None or vocab_size < MIN_BYTE_VOCABULARY:
            raise ValueError(
                f"a {kind} tokenizer needs a vocab_size of at least {MIN_BYTE_VOCABULARY}: "
                f"{len(BYTE_ALPHABET)} bytes and {END_OF_TEXT} (it is {vocab_size})"
            )
        tokenizer = _byte_level(kind, texts, vocab_size)
    return as_pretrained(tokenizer)


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer whose one special token is `<|endoftext|>`, as transformers has them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        padding_side="left",  # so that a batch of prompts can be continued
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A saved tokenizer, from a folder or the Hub.

    Raises:
        ValueError: there is none, or it has no token to begin a text with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {source}; give a folder or Hub name that holds one, "
            f"or one of {', '.join(KINDS)} to make it from the text"
        ) from error
    if tokenizer.bos_token_id is None:
        raise ValueError(f"the tokenizer at {source} has no bos_token to begin a text with")
    return tokenizer


def _characters(texts: list[str]) -> Tokenizer:
    characters = sorted(set().union(*texts))
    vocabulary = {token: i for i, token in enumerate([END_OF_TEXT, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    # Not ".", which leaves out the newline.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_level(kind: str, texts: list[str], vocab_size: int) -> Tokenizer:
    shared = {
        "vocab_size": vocab_size,
        "special_tokens": [END_OF_TEXT],
        "initial_alphabet": BYTE_ALPHABET,
        "show_progress": False,
    }
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(**shared)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token=END_OF_TEXT, **shared)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pieces = (piece for text in texts for piece in _pieces(text))
    tokenizer.train_from_iterator(pieces, trainer)
    if kind == "unigram":
        tokenizer.model = _in_fixed_order(tokenizer.model)
    return tokenizer


def _in_fixed_order(model: models.Unigram) -> models.Unigram:
    """The same pieces in the same order after every training on the same text.

    The trainer walks through hash tables, whose order changes from process to process: so do the
    last digits of the scores, the order of pieces that score alike, and the scores of bytes that
    the text does not have, to which it deals out the lowest score plus 0, 0.0001, 0.0002, ...
    """
    (special, *pieces) = json.loads(model.__getstate__())["vocab"]
    lowest = min(score for _, score in pieces)
    dealt_out = lowest + 0.0001 * len(BYTE_ALPHABET)
    fixed = [
        (piece, round(lowest if len(piece) == 1 and score <= dealt_out else score, 6))
        for piece, score in pieces
    ]
    fixed.sort(key=lambda item: (-item[1], item[0]))
    return models.Unigram([tuple(special), *fixed], unk_id=END_OF_TEXT_ID)


def _pieces(text: str) -> Iterator[str]:
    """A document in pieces of some more than `PIECE_CHARACTERS`, which tokenize as the whole does.

    They are cut at line ends that follow a letter or sign: no token of any kind of tokenizer here
    goes from what is no space to a space, so none is cut.
    """
    start = 0
    for cut in re.finditer(r"(?<=\S)(?=\n)", text):
        if cut.start() - start >= PIECE_CHARACTERS:
            yield text[start : cut.start()]
            start = cut.start()
    yield text[start:]


def add_characters(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[int]:
    """Gives each character that a tokenizer does not know a token; the ids of these, in order.

    A tokenizer over bytes knows them all.
    """
    characters = sorted(set().union(*texts))
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(characters, add_special_tokens=False)
    missing = [
        character
        for character, encoding in zip(characters, encodings, strict=True)
        if tokenizer.unk_token_id in encoding.ids
    ]
    tokenizer.add_tokens(missing)
    return tokenizer.convert_tokens_to_ids(missing)


def loses_characters(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether there are characters that it does not know; one over bytes knows them all."""
    return tokenizer.unk_token_id in tokenizer("\N{SNOWMAN}\N{OGHAM LETTER RUIS}").input_ids


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: str | Iterable[str], start_id: int | None = None
) -> np.ndarray:
    """All documents as one row of ids, `<|endoftext|>` before each, or the token `start_id`.

    Of a single document, all but the first id are predicted from what is before them, and stand
    for its text exactly: a loss summed over them, divided by `len(text)`, is nats per character.
    (Of more documents, the ends of all but the last are predicted besides.)

    Returns:
        (tokens,), uint16, or int32 for a vocabulary of more than 65,536.
    """
    texts = [texts] if isinstance(texts, str) else texts
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    start = np.array([tokenizer.bos_token_id if start_id is None else start_id], dtype=dtype)
    pieces = (
        (piece, position == 0) for text in texts for position, piece in enumerate(_pieces(text))
    )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # both may be left over from an earlier call; the next one sets them anew
    backend.no_truncation()
    rows, num_unknown = [start[:0]], 0
    while batch := list(islice(pieces, PIECES_PER_BATCH)):
        # Straight to the backend: no warning about the length, and no offsets to work out.
        encodings = backend.encode_batch_fast(
            [piece for piece, _ in batch], add_special_tokens=False
        )
        for encoding, (_, starts_document) in zip(encodings, batch, strict=True):
            ids = np.array(encoding.ids, dtype=dtype)
            num_unknown += int((ids == tokenizer.unk_token_id).sum())
            rows += [start, ids] if starts_document else [ids]
    if num_unknown:
        logger.warning("unknown tokens: %d, encoded as %s", num_unknown, tokenizer.unk_token)
    return np.concatenate(rows)


class TokenBlocks(torch.utils.data.Dataset):
    """A row of tokens, cut into blocks of one length.

    Block i starts at token `i * stride`, and is `{"input_ids": (block_size,), "labels":
    (block_size,)}`, both int64. The labels are the inputs: Hugging Face models shift them inside,
    so the first token of a block is only read, and the others are predicted. There are as many
    blocks as it takes to reach the last token. If the last one is longer than what remains, its end
    is padded (id 0, label -100).

    Make one by `for_training` or `for_evaluation`.

    Args:
        ids: (tokens,), of any integer type; may be memory-mapped.
        block_size: tokens of a block, at least 2.
        stride: tokens from the start of one block to that of the next, less than `block_size`.

    Raises:
        ValueError: fewer than two tokens, or a block size or stride that leaves tokens out.
    """

    def __init__(self, ids: np.ndarray, block_size: int, stride: int):
        if block_size < 2:
            raise ValueError(f"block_size is {block_size}; a block to learn from has at least 2")
        if not 1 <= stride < block_size:
            raise ValueError(f"stride is {stride}; it must be from 1 to block_size - 1")
        if len(ids) < 2:
            raise ValueError(f"the text has {len(ids)} tokens: nothing can be predicted")
        self.ids = ids
        self.block_size = block_size
        self.stride = stride

    @classmethod
    def for_training(cls, ids: np.ndarray, block_size: int) -> "TokenBlocks":
        """A block at every token: under a shuffling sampler, random crops, as nanoGPT takes them.

        Raises:
            ValueError: the text is shorter than one block.
        """
        if len(ids) < block_size:
            raise ValueError(
                f"the training text has {len(ids)} tokens, and a block {block_size}: "
                f"give more text or smaller blocks (--max_position_embeddings)"
            )
        return cls(ids, block_size, stride=1)

    @classmethod
    def for_evaluation(cls, ids: np.ndarray, block_size: int) -> "TokenBlocks":
        """Blocks of which each starts with the last token of the one before.

        So every token of the text but its first is predicted exactly once. A text shorter than one
        block is padded.
        """
        return cls(ids, block_size, stride=block_size - 1)

    def __len__(self) -> int:
        return 1 + max(0, -(-(len(self.ids) - self.block_size) // self.stride))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Many blocks at once, which is how a DataLoader asks: one look-up for the whole batch."""
        starts = np.asarray(indices, dtype=np.int64)
        if starts.size and (starts.min() < 0 or starts.max() >= len(self)):
            raise IndexError(f"a block's index must be from 0 to {len(self) - 1}: {indices}")
        positions = starts[:, None] * self.stride + np.arange(self.block_size)
        outside = positions >= len(self.ids)  # (blocks, block_size): the padding
        input_ids = self.ids[np.minimum(positions, len(self.ids) - 1)].astype(np.int64)
        input_ids[outside] = END_OF_TEXT_ID
        labels = np.where(outside, IGNORED_LABEL, input_ids)
        return [
            {"input_ids": block, "labels": block_labels}
            for block, block_labels in zip(
                torch.from_numpy(input_ids), torch.from_numpy(labels), strict=True
            )
        ]
