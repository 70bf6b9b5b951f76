"""Word2Vec: a vector for every word, learned from the words that stand around it.

"You shall know a word by the company it keeps." Each word w has two vectors: v_w, by which it is
known, and u_w, by which it is expected beside others (Mikolov et al. 2013a, "Efficient Estimation
of Word Representations in Vector Space"). Their product says how well two words go together:

    score(w, c) = u_c . v_w

Skip-gram guesses each word c around a centre w. To score all words of the vocabulary each time
would cost too much, so that negative sampling (Mikolov et al. 2013b, "Distributed Representations
of Words and Phrases and their Compositionality") tells c from K words n drawn at random:

    loss(w, c) = -log sigmoid(u_c . v_w) - sum over K words n of log sigmoid(-u_n . v_w)

The words n are drawn with a probability proportional to count^0.75, between "as often as in the
text" and "all alike". CBOW turns it round: the centre is guessed from the mean of all v around it,

    loss(w) = -log sigmoid(u_w . h) - sum over K words n of log sigmoid(-u_n . h),
    h = mean of v_c over the words c around w

which is one guess for each centre rather than one for each pair: quicker, and coarser.

The vectors u begin at zero, so that each of the 1 + K guesses is worth ln 2 at first, and the loss
is (1 + K) ln 2. This file says what the loss is; `train/negative_sampling.py` has the same
gradients worked out by hand, for a thousand centres at a time.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {"AutoConfig": "word2vec.Word2VecConfig", "AutoModel": "word2vec.Word2VecModel"}
ARCHITECTURES = ("skip-gram", "cbow")


class Word2VecConfig(PreTrainedConfig):
    """The shape of a Word2Vec model and of its loss.

    Args:
        vocab_size: words, with the one that stands for unknown words.
        hidden_size: numbers of a vector.
        architecture: skip-gram or cbow.
        num_negatives: K, words drawn at random for each one that is guessed.
        pad_token_id: stands for unknown words and for padding; its vector stays zero.
        with_contexts: whether there are vectors u: for the loss, but not to use the vectors v.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-word2vec"

    vocab_size: int = 30_000
    hidden_size: int = 100
    architecture: str = "skip-gram"
    num_negatives: int = 5
    pad_token_id: int = 0
    with_contexts: bool = True

    def __post_init__(self, **kwargs):
        for name in ("vocab_size", "hidden_size", "num_negatives"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value}; it must be a whole number of at least 1")
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}; unknown words need one of the "
                f"{self.vocab_size} vectors: a whole number from 0 to {self.vocab_size - 1}"
            )
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture is {self.architecture!r}; it must be {' or '.join(ARCHITECTURES)}"
            )
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)


@dataclass
class Word2VecOutput(ModelOutput):
    """What `Word2VecModel` gives.

    Args:
        loss: mean over the guesses, in nats, where contexts were given.
        last_hidden_state: v of each word, (..., hidden_size) for `input_ids` of shape (...).
    """

    loss: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class Word2VecModel(PreTrainedModel):
    """Two vectors for each word; works with `pipeline("feature-extraction")`."""

    config: Word2VecConfig
    config_class = Word2VecConfig
    base_model_prefix = "word2vec"
    main_input_name = "input_ids"
    # The loss is a mean over the batch that was given; a Trainer divides by what it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config: Word2VecConfig):
        super().__init__(config)
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(*shape, padding_idx=config.pad_token_id)  # v
        if config.with_contexts:
            self.embed_contexts = nn.Embedding(*shape, padding_idx=config.pad_token_id)  # u
        self.post_init()

    def _init_weights(self, module):
        """v small and random, u zero (as in the authors' program); unknown words have zeros."""
        if not isinstance(module, nn.Embedding):
            return
        if module is self.embed_tokens:
            bound = 0.5 / self.config.hidden_size
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.weight[module.padding_idx])
        else:
            init.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        """The vectors v, by which words are known."""
        return self.embed_tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        context_ids: torch.LongTensor | None = None,
        context_mask: torch.BoolTensor | None = None,
        negative_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> Word2VecOutput:
        """Looks words up; with contexts and negatives, says how well they are guessed.

        Args:
            input_ids: words, of any shape; (batch,) centres where there are contexts.
            attention_mask: is not needed: no word looks at another.
            context_ids: (batch, width), the words around each centre.
            context_mask: (batch, width), which of them are there; all, if it is not given.
            negative_ids: (batch, width, N), or (batch, 1, N) for all guesses of a centre. N is K
                by the book; the mean over any other number stands for the same expectation.

        Raises:
            ValueError: contexts without negatives, shapes that do not fit, or no vectors u.
        """
        vectors = self.embed_tokens(input_ids)
        if context_ids is None:
            return Word2VecOutput(last_hidden_state=vectors)
        if not self.config.with_contexts:
            raise ValueError("this model was saved without the vectors u, which the loss needs")
        batch, width = context_ids.shape
        fits = negative_ids is not None and negative_ids.ndim == 3
        if not fits or negative_ids.shape[0] != batch or negative_ids.shape[1] not in (1, width):
            raise ValueError(
                f"contexts of shape ({batch}, {width}) need negative_ids of shape "
                f"({batch}, {width}, N) or ({batch}, 1, N)"
            )
        if context_mask is None:
            context_mask = torch.ones_like(context_ids, dtype=torch.bool)
        if self.config.architecture == "skip-gram":
            hidden = vectors[:, None]  # (batch, 1, hidden_size)
            guessed, there = context_ids, context_mask  # (batch, width)
        else:
            around = context_mask[..., None] * self.embed_tokens(context_ids)
            number = context_mask.sum(1, keepdim=True)
            hidden = (around.sum(1) / number.clamp(min=1))[:, None]  # (batch, 1, hidden_size)
            guessed, there = input_ids[:, None], number > 0  # (batch, 1)
            negative_ids = negative_ids[:, :1]
        right = (self.embed_contexts(guessed) * hidden).sum(-1)  # (batch, guesses)
        wrong = (self.embed_contexts(negative_ids) * hidden[:, :, None]).sum(-1)  # (.., .., N)
        num_negatives = self.config.num_negatives
        losses = -F.logsigmoid(right) - num_negatives * F.logsigmoid(-wrong).mean(-1)
        loss = (losses * there).sum() / there.sum().clamp(min=1)
        return Word2VecOutput(loss=loss, last_hidden_state=vectors)


__all__ = ["Word2VecConfig", "Word2VecModel"]
