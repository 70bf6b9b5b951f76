"""Features of pictures by our own classifier, and the Fréchet distance between two sets of them.

    extract = PictureFeatures("pretrained/cnn")
    distance = frechet_distance(extract(real), extract(generated))

Inception's features make FID (Heusel et al. 2017); these make another measure, the Fréchet
*classifier* distance. Two figures compare only where `PictureFeatures.identity` and the number of
pictures are the same (few pictures seem further apart), so both belong beside each of them, with
the distance of as many real training pictures from real test pictures as the floor.

The model in `pretrained/cnn` is the extractor of this project. Who replaces it with a better one
takes its identity into `EXTRACTOR`, and measures all published distances anew.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

EXTRACTOR = "710df343f1c6"  # identity of pretrained/cnn
DECISIVE = ("model.safetensors", "preprocessor_config.json")


class PictureFeatures:
    """What a trained CNN has found in pictures, before it names a class: its `pooler_output`.

    Args:
        folder: of a published model, such as `pretrained/cnn`.

    Attributes:
        identity: of the weights, the configuration and what is done to pictures, whatever the
            folder is called.

    Raises:
        ValueError: there is no model in the folder, or its weights are of another network.
    """

    def __init__(self, folder: str | Path):
        if not all((Path(folder) / name).is_file() for name in (*DECISIVE, "config.json")):
            raise ValueError(
                f"{folder} is no folder with a picture classifier: publish a run of train/cnn.py "
                f"there first"
            )
        parts = [(Path(folder) / name).read_bytes() for name in DECISIVE]
        config = json.loads((Path(folder) / "config.json").read_bytes())
        config.pop("transformers_version", None)  # that saved it: the features stay
        parts.append(json.dumps(config, sort_keys=True).encode())
        self.identity = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
        # In fp32 and evaluation, where a picture's features do not depend on its batch.
        classifier, loading = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        if wrong := sorted(loading["missing_keys"] | loading["unexpected_keys"]):
            raise ValueError(f"{folder} was saved by other code: {', '.join(wrong)} do not fit")
        self.model = classifier.base_model.eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        self.size = (processor.size["height"], processor.size["width"])
        self.mean, self.std = (
            torch.tensor(values)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """(n, 3, height, width), uint8, as large as what the model was trained on -> (n, features).

        Raises:
            ValueError: no pictures, or of another size or type.
        """
        if not isinstance(images, np.ndarray) or not len(images):
            raise ValueError("pictures must be a numpy array of at least one")
        if images.dtype != np.uint8 or images.shape[1:] != (3, *self.size):
            raise ValueError(
                f"pictures must be uint8 of (n, 3, {self.size[0]}, {self.size[1]}), not "
                f"{images.dtype} of {images.shape}"
            )
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[start : start + batch_size].astype(np.float32)) / 255
            parts.append(self.model((pixels - self.mean) / self.std).pooler_output)
        return torch.cat(parts).numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between normal distributions with the means and covariances of two sets of features.

        |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    The trace of the root is the sum of the roots of the product's eigenvalues, which are real and
    not negative.

    Args:
        a, b: (n, features), more rows than features.

    Raises:
        ValueError: too few rows for a covariance, or features of two extractors.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} features are of two extractors")
    for features in (a, b):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{len(features)} pictures are too few for {features.shape[1]} features: give more"
            )
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    return float(max(distance, 0.0))
