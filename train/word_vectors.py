"""Word vectors in use: exports to other libraries, scores, and pictures of chosen words."""

import math
from pathlib import Path

import numpy as np
import torch

from groundup.models.word2vec import Word2VecModel

# Files of gensim's test data: people's ratings of pairs, and questions such as "Athens is to Greece
# as Oslo is to ...?" (Finkelstein et al. 2001, Hill et al. 2015, Mikolov et al. 2013).
RATINGS = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}
QUESTIONS = "questions-words.txt"
# Where a label may stand beside its point on the map, best first: how far across and up, points.
LABEL_PLACES = ((4, 3), (4, -3), (-4, 3), (-4, -3), (5, 0), (-5, 0), (0, 5), (0, -5))
CHOSEN = {
    "family": "father mother brother sister son daughter uncle aunt husband wife",
    "body": "head hand arm eye foot face hair heart",
    "places": "england france germany italy london paris rome america",
    "time": "day night morning evening week month year hour",
    "numbers": "two three four five six seven eight ten",
    "feelings": "love hope fear joy anger grief pride sorrow",
}


def to_keyed_vectors(model: Word2VecModel, tokenizer):
    """The vectors as gensim's `KeyedVectors`, without the one of unknown words.

    Args:
        tokenizer: of `data_scripts.words.word_tokenizer`.
    """
    from gensim.models import KeyedVectors

    ids = [i for i in range(len(tokenizer)) if i != model.config.pad_token_id]
    keyed = KeyedVectors(model.config.hidden_size, count=0)
    vectors = model.embed_tokens.weight.detach().float().cpu().numpy()
    keyed.add_vectors(tokenizer.convert_ids_to_tokens(ids), vectors[ids])
    return keyed


def to_static_embedding(model: Word2VecModel, tokenizer):
    """A `StaticEmbedding` of sentence-transformers: a sentence is the mean of its words' vectors.

    `SentenceTransformer(modules=[to_static_embedding(model, tokenizer)])` then encodes texts. A
    word that is unknown counts as zeros.
    """
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    weights = model.embed_tokens.weight.detach().float().cpu().numpy()
    return StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)


def score_vectors(keyed) -> dict[str, float]:
    """How well gensim's `KeyedVectors` agree with people, by gensim's own evaluation.

    Returns:
        `wordsim353`, `simlex999`: Spearman's rank correlation of cosines with ratings, over the
        pairs whose words are known; `analogies`: the share of questions answered right, likewise;
        and under each name with `_known`, the share of the pairs or questions of the set whose
        words are known. 0 where nothing is known.
    """
    from gensim.test.utils import datapath

    scores, known = {}, {}
    for name, file in RATINGS.items():
        try:
            _, (correlation, _), missing = keyed.evaluate_word_pairs(datapath(file))
        except ValueError:  # no pair is known
            correlation, missing = 0.0, 100.0
        scores[name] = 0.0 if math.isnan(correlation) else float(correlation)
        known[f"{name}_known"] = 1 - missing / 100
    right, (*_, total) = keyed.evaluate_word_analogies(datapath(QUESTIONS))
    scores["analogies"] = float(right)
    lines = Path(datapath(QUESTIONS)).read_text(encoding="utf-8").splitlines()
    questions = sum(not line.startswith(":") for line in lines)  # else it is a heading
    asked = len(total["correct"]) + len(total["incorrect"])
    known["analogies_known"] = asked / questions
    return scores | known


def neighbours(keyed, words: list[str], number: int = 8) -> str:
    """A table in Markdown of the words nearest to each of those that are known."""
    lines = ["| word | nearest |", "|---|---|"]
    for word in words:
        if word in keyed:
            near = ", ".join(f"{w} {s:.2f}" for w, s in keyed.most_similar(word, topn=number))
            lines.append(f"| {word} | {near} |")
    return "\n".join(lines)


def plot_map(keyed, path: Path, groups: dict[str, str] = CHOSEN) -> bool:
    """A map of chosen words: the two principal components of their vectors of length 1.

    Returns:
        Whether there was anything to draw: at least three known words.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.decomposition import PCA

    known = [(g, w) for g, words in groups.items() for w in words.split() if w in keyed]
    if len(known) < 3:
        return False
    vectors = np.stack([keyed.get_vector(word, norm=True) for _, word in known])
    places = PCA(2, random_state=0).fit_transform(vectors)
    figure, axes = plt.subplots(figsize=(9, 7), dpi=120, layout="constrained")
    for i, group in enumerate(groups):
        mine = [row for row, (of, _) in enumerate(known) if of == group]
        axes.scatter(*places[mine].T, s=14, color=f"C{i}", label=group)
    axes.legend(frameon=False)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.08)
    figure.draw_without_rendering()  # from now on it is clear where on the paper a point is
    taken = []
    for (_, word), place in zip(known, places, strict=True):
        label = axes.annotate(word, place, (0, 0), textcoords="offset points", fontsize=8)
        label.set_in_layout(False)  # labels shall not move the points that they stand beside
        taken.append(place_label(label, taken))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return True


def place_label(label, taken: list):
    """Moves a label to the first place around its point where it overlaps none of the others.

    Where all are taken it stands in the best of them.

    Args:
        label: of `annotate`, in points from its own.
        taken: bounding boxes of the labels that stand already.

    Returns:
        Its bounding box.
    """
    for across, up in (*LABEL_PLACES, LABEL_PLACES[0]):
        horizontal = "left" if across > 0 else "right" if across < 0 else "center"
        vertical = "bottom" if up > 0 else "top" if up < 0 else "center"
        label.set(position=(across, up), ha=horizontal, va=vertical)
        box = label.get_window_extent()
        if not any(box.overlaps(other) for other in taken):
            break
    return box


@torch.no_grad()
def without_contexts(model: Word2VecModel) -> Word2VecModel:
    """The same model without the vectors u, half the size: what is published."""
    settings = {**model.config.to_dict(), "with_contexts": False}
    smaller = Word2VecModel(type(model.config).from_dict(settings))
    smaller.embed_tokens.weight.copy_(model.embed_tokens.weight)
    return smaller
