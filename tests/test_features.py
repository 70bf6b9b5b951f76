"""Features of pictures: those of the classifier itself; the Fréchet distance by its closed form."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessor

from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.results import PRETRAINED
from groundup.train.features import EXTRACTOR, PictureFeatures, frechet_distance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published CNN, tiny."""
    path = tmp_path_factory.mktemp("cnn")
    torch.manual_seed(0)
    CNNForImageClassification(CNNConfig(hidden_sizes=(26, 32), depth=1)).save_pretrained(path)
    processor = ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(path)
    return path


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)


def test_features_are_what_the_classifier_scores_by(folder):
    extract, images = PictureFeatures(folder), noise(7)
    features = extract(images, batch_size=3)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = ViTImageProcessor.from_pretrained(folder)
    inputs = processor(list(images.transpose(0, 2, 3, 1)), return_tensors="pt")
    with torch.no_grad():
        scores = model.classifier(torch.from_numpy(features)) * model.config.logit_scale
        assert torch.allclose(scores, model(**inputs).logits, atol=1e-5)
    assert np.allclose(extract(images), features, atol=1e-5)  # in any batch
    assert PictureFeatures(folder).identity == extract.identity


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_other_weights_or_another_mean_are_another_extractor(folder, tmp_path, name):
    other = tmp_path / "cnn"
    shutil.copytree(folder, other)
    assert PictureFeatures(other).identity == PictureFeatures(folder).identity
    if name == "model.safetensors":
        model = CNNForImageClassification.from_pretrained(other)
        model.classifier.weight.data += 1
        model.save_pretrained(other)
    else:
        ViTImageProcessor.from_pretrained(other, image_mean=[0.5, 0.5, 0.3]).save_pretrained(other)
    assert PictureFeatures(other).identity != PictureFeatures(folder).identity


def test_the_extractor_of_this_project_is_the_one_that_distances_are_measured_with():
    """Who publishes another `pretrained/cnn` measures all distances anew, and says so there."""
    assert PictureFeatures(PRETRAINED / "cnn").identity == EXTRACTOR


def test_wrong_pictures_are_refused(folder, tmp_path):
    for images in (noise(2).astype(np.float32), noise(2)[:, :1], noise(2)[..., :8]):
        with pytest.raises(ValueError, match="must be uint8"):
            PictureFeatures(folder)(images)
    for images in (noise(0), list(noise(2))):
        with pytest.raises(ValueError, match="must be a numpy array of at least one"):
            PictureFeatures(folder)(images)
    with pytest.raises(ValueError, match="is no folder with a picture classifier"):
        PictureFeatures(tmp_path)


def test_weights_of_another_network_are_refused(folder, tmp_path):
    other = tmp_path / "cnn"
    shutil.copytree(folder, other)
    tensors = load_file(other / "model.safetensors")
    tensors["cnn.whitening.bias"] = torch.zeros(24)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"saved by other code: cnn\.whitening\.bias do"):
        PictureFeatures(other)


def test_frechet_distance_of_normal_distributions():
    """Of independent features: the sum of (mean difference)^2 and (deviation difference)^2."""
    a = np.random.default_rng(0).standard_normal((200, 3))
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T
    b = a * [1, 2, 3] + [0, 0, 5]
    assert frechet_distance(a, b) == pytest.approx(0 + 1 + 4 + 25)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(30)
    with pytest.raises(ValueError, match="too few"):
        frechet_distance(a[:3], b)
    with pytest.raises(ValueError, match="3 and 2 features are of two extractors"):
        frechet_distance(a, b[:, :2])
