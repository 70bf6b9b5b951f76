"""Word2Vec's updates, with the gradients of `models/word2vec.py` worked out by hand.

Pair by pair, a guess moves 12 vectors to make 6 products of 100 numbers, and a processor spends all
of its time on moving. Two changes make matrix products of it (after Ji et al. 2016, "Parallelizing
Word2Vec in Shared and Distributed Memory"):

- The text is cut into blocks of T consecutive centres. All words around them stand in one row of
  T + 2 * window words, so that one product of (T, d) with (d, T + 2 * window) has the scores of all
  pairs; those out of reach are masked. That computes too much, and is many times quicker. The rows
  of neighbouring blocks overlap: each word's vector is fetched once for all blocks, and changed
  once.
- Some blocks in a row share N negatives, each with the weight K / N, in place of K of their own for
  each centre. The expectation of the loss and of its gradient is the same.

With s a score, y 1 for a pair and 0 for a negative, c its weight, the derivative of the loss is
c (sigmoid(s) - y); call the matrix of these, negated, G: (T, words). All else is two products:

    gradient of v: G U          gradient of u: G^T V

and plain SGD, row by row, on the sum over all pairs. Nothing is stored between updates.
"""

import numpy as np
import torch
from torch.nn import functional as F

# One draw is one look into a table of words, each there as often as its probability says.
TABLE_SIZE = 2**22


def keep_probabilities(counts: np.ndarray, sample: float) -> torch.Tensor:
    """How likely each word is to be kept; those commoner than `sample` often are not.

    With f the share of a word in the text, (sqrt(f / sample) + 1) * sample / f, at most 1: as in
    the authors' program (the paper has another formula). 0 keeps all.
    """
    share = counts / counts.sum()
    if not sample:
        return torch.ones(len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = (np.sqrt(share / sample) + 1) * sample / share
    return torch.from_numpy(np.nan_to_num(np.minimum(keep, 1), nan=1.0)).float()


def negative_table(counts: np.ndarray, power: float = 0.75, size: int = TABLE_SIZE) -> torch.Tensor:
    """A table of ids: a random entry is a word with probability proportional to count^power."""
    cumulative = np.cumsum(counts**power) / (counts**power).sum()
    places = (np.arange(size) + 0.5) / size
    return torch.from_numpy(np.searchsorted(cumulative, places).astype(np.int32))


def draw_reaches(length: int, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each of the words of a row looks to its left and to its right.

    Both as far as a number drawn from 1 to `window`, so that near words count more than far ones;
    never beyond the ends.

    Returns:
        Two of (length,), int8.
    """
    reach = torch.randint(1, window + 1, (length,))
    place = torch.arange(length)
    left, right = torch.minimum(reach, place), torch.minimum(reach, length - 1 - place)
    return left.to(torch.int8), right.to(torch.int8)


class NegativeSampling:
    """Updates two tables of vectors, in place, by blocks of consecutive words.

    Args:
        vectors, contexts: v and u, each (vocab_size, hidden_size), fp32.
        architecture, num_negatives: as in `Word2VecConfig`.
        table: of `negative_table`.
        window: the furthest word that a centre looks at.
        block: T, centres whose surroundings are one row.
        sharing: centres that share their negatives, whole blocks.
        shared_negatives: N.
    """

    def __init__(
        self,
        vectors,
        contexts,
        architecture,
        num_negatives,
        table,
        window,
        block,
        sharing,
        shared_negatives,
    ):
        self.vectors, self.contexts = vectors, contexts
        self.is_skip_gram = architecture == "skip-gram"
        self.gradients = self.skip_gram if self.is_skip_gram else self.cbow
        self.num_negatives, self.table = num_negatives, table
        self.window, self.block = window, block
        self.sharing, self.shared_negatives = sharing, shared_negatives
        self.width = block + 2 * window
        self.patterns = reach_patterns(window, block, mean=not self.is_skip_gram)
        self.patterns = self.patterns.to(vectors.device)
        self.place = torch.arange(block, device=vectors.device)

    def draw(self, count: int) -> torch.Tensor:
        """Negatives for so many centres: (count / sharing, N).

        For many updates at once: they come from all over the table, which takes a while.
        """
        drawn = torch.randint(len(self.table), (count // self.sharing, self.shared_negatives))
        return self.table[drawn].long().to(self.vectors.device)

    def update(self, row, left, right, negatives, rate: float) -> None:
        """One step of SGD on the sum of the losses of all guesses.

        Args:
            row: (window + blocks * block + window,), consecutive words; the outer ones are only
                looked at.
            left, right: (blocks * block,), int8, the reach of each centre.
            negatives: of `draw`, for as many centres.
            rate: learning rate.
        """
        for table, ids, gradient in self.gradients(row, left, right, negatives):
            add_rows(table, ids, gradient.mul_(rate))

    def arrange(self, row, left, right):
        """A row of words as blocks.

        Returns:
            Centres (blocks, block); how much each of them looks at each word around
            (blocks, block, width); at how many (blocks, block, 1).
        """
        centres = row[self.window : len(row) - self.window].view(-1, self.block)
        left, right = left.long().view(-1, self.block), right.long().view(-1, self.block)
        reaches = self.window + 1
        pattern = (self.place * reaches + left) * reaches + right
        return centres, look_up(self.patterns, pattern), (left + right).float().unsqueeze(2)

    def around(self, vectors: torch.Tensor) -> torch.Tensor:
        """(window + blocks * block + window, d) -> (blocks, width, d): overlapping views of it."""
        return vectors.unfold(0, self.width, self.block).transpose(1, 2)

    def add_overlapping(self, blocks: torch.Tensor) -> torch.Tensor:
        """The reverse: (blocks, width, d) -> (window + blocks * block + window, d), summed."""
        count, width, size = blocks.shape
        shifts = range(0, width, self.block)
        total = blocks.new_zeros((count + len(shifts)) * self.block, size)
        for shift in shifts:
            part = blocks[:, shift : shift + self.block]
            whole = total[shift : shift + count * self.block].view(count, self.block, size)
            whole[:, : part.shape[1]] += part
        return total[: count * self.block + 2 * self.window]

    def skip_gram(self, row, left, right, negatives) -> list[tuple]:
        """Which rows of which table change, and how: -gradient of the summed loss.

        Returns:
            Tuples of (table, ids, (*ids.shape, hidden_size)).
        """
        centres, seen, number = self.arrange(row, left, right)
        v = look_up(self.vectors, centres)  # (blocks, block, d)
        u = self.around(look_up(self.contexts, row))  # (blocks, width, d)
        right_g = torch.bmm(v, u.transpose(1, 2)).neg_().sigmoid_().mul_(seen)
        back, of_negatives = self.from_negatives(v, negatives, number)
        return [
            (self.vectors, centres, back.baddbmm_(right_g, u)),
            (self.contexts, row, self.add_overlapping(torch.bmm(right_g.transpose(1, 2), v))),
            (self.contexts, negatives, of_negatives),
        ]

    def cbow(self, row, left, right, negatives) -> list[tuple]:
        """The same for CBOW, where a mean is a product too.

        A word's gradient comes to it through the mean, divided by the same number.
        """
        centres, average, number = self.arrange(row, left, right)
        v = self.around(look_up(self.vectors, row))  # (blocks, width, d)
        u = look_up(self.contexts, centres)
        hidden = torch.bmm(average, v)  # (blocks, block, d)
        there = (number > 0).float()
        right_g = (hidden * u).sum(2, keepdim=True).neg_().sigmoid_().mul_(there)
        back, of_negatives = self.from_negatives(hidden, negatives, there)
        back.addcmul_(right_g, u)
        return [
            (self.vectors, row, self.add_overlapping(torch.bmm(average.transpose(1, 2), back))),
            (self.contexts, centres, hidden.mul_(right_g)),
            (self.contexts, negatives, of_negatives),
        ]

    def from_negatives(self, hidden, negatives, weight):
        """How the shared negatives change what guesses them, and are changed: -gradient.

        Args:
            hidden: (blocks, block, d), what is compared with them.
            negatives: (groups, N); a group is `sharing` centres, some blocks.
            weight: (blocks, block, 1), how often each centre guesses.

        Returns:
            (blocks, block, d), (groups, N, d).
        """
        grouped = hidden.view(len(negatives), -1, hidden.shape[2])  # (groups, sharing, d)
        u = look_up(self.contexts, negatives)  # (groups, N, d)
        g = torch.bmm(grouped, u.transpose(1, 2)).sigmoid_()  # (groups, sharing, N)
        share = -self.num_negatives / negatives.shape[1]
        g.mul_(weight.view(len(negatives), -1, 1) * share)
        return torch.bmm(g, u).view_as(hidden), torch.bmm(g.transpose(1, 2), grouped)

    def loss(self, row, left, right) -> float:
        """The mean loss of the guesses of a row, in nats, with negatives drawn anew."""
        centres, seen, number = self.arrange(row, left, right)
        drawn = torch.randint(len(self.table), (len(centres), self.shared_negatives))
        negatives = look_up(self.contexts, self.table[drawn].long().to(row.device))
        if self.is_skip_gram:
            v, u = look_up(self.vectors, centres), self.around(look_up(self.contexts, row))
            weight = number
            right_loss = (F.softplus(-torch.bmm(v, u.transpose(1, 2))) * seen).sum()
        else:
            v = torch.bmm(seen, self.around(look_up(self.vectors, row)))
            weight = (number > 0).float()
            score = (v * look_up(self.contexts, centres)).sum(2, keepdim=True)
            right_loss = (F.softplus(-score) * weight).sum()
        wrong = F.softplus(torch.bmm(v, negatives.transpose(1, 2))).mean(2, keepdim=True)
        total = right_loss + self.num_negatives * (wrong * weight).sum()
        return (total / weight.sum().clamp(min=1)).item()


def reach_patterns(window: int, block: int, mean: bool) -> torch.Tensor:
    """Which words of a block's row a centre looks at, for each centre and each reach.

    Looked up for each centre: to compare places anew in each update takes as long as a product.

    Args:
        mean: the weights of a mean, rather than ones.

    Returns:
        (block * (window + 1) * (window + 1), block + 2 * window), fp32: for the centre's place in
        its block, its reach to the left and to the right, in this order.
    """
    # (block, 1, 1, width): how far to the right of a centre each word of the row stands.
    offset = torch.arange(block + 2 * window) - torch.arange(block)[:, None, None, None] - window
    reach = torch.arange(window + 1)
    seen = (offset >= -reach[:, None, None]) & (offset <= reach[:, None]) & (offset != 0)
    seen = seen.flatten(0, 2).float()
    return seen / seen.sum(1, keepdim=True).clamp(min=1) if mean else seen


def look_up(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a table: (*ids.shape, hidden_size)."""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])


def add_rows(table: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> None:
    """Adds to rows of a table, each as often as its id is there.

    With an index that is expanded along the rows, scatter_add_ has a fast way on a CPU, which adds
    the values of a row in one order whatever the threads do: a run that is resumed on a CPU ends
    with the same bits.
    """
    size = table.shape[1]
    table.scatter_add_(0, ids.reshape(-1, 1).expand(-1, size), values.reshape(-1, size))
