"""The CNN against a plain calculation, its first layer, and how it starts."""

import pytest
import torch
from torch.nn import functional as F

from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.train.cnn import describe_model

BLUR = {"pool_size": 3, "pool_blur": True}
WIDE_BLUR = {"pool_size": 4, "pool_blur": True}  # of grids with a rest


def make(**options) -> CNNForImageClassification:
    torch.manual_seed(0)
    options = {"hidden_sizes": [26, 32], "num_labels": 5, "whitening": True} | options
    return CNNForImageClassification(CNNConfig(**options))


def some_pictures(count: int = 6, size: int = 20) -> torch.Tensor:
    """Smooth, as photographs are: neighbouring pixels are alike."""
    noise = torch.randn(count, 3, size // 2, size // 2, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(size, size), mode="bilinear")


def normalise(x, norm, training: bool):
    mean, variance = norm.running_mean, norm.running_var
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    mean, variance, shift = (v[:, None, None] for v in (mean, variance, norm.bias))
    return (x - mean) / (variance + norm.eps).sqrt() + shift


def pool(x, size: int, blur: bool) -> torch.Tensor:
    if not blur:
        return F.max_pool2d(x, size, 2)
    grid = [(length - size) // 2 + 1 for length in x.shape[2:]]
    maxima = [F.max_pool2d(x[:, :, i:, j:], size - 1, 2) for i in (0, 1) for j in (0, 1)]
    return sum(m[:, :, : grid[0], : grid[1]] for m in maxima) / 4


def by_hand(model, x, training: bool) -> torch.Tensor:
    """The equation of the model file, in functions."""
    x = F.gelu(F.conv2d(x, model.cnn.whitening.weight))
    for group in model.cnn.groups:
        for i, (conv, norm) in enumerate(zip(group.convs, group.norms, strict=True)):
            x = F.conv2d(x, conv.weight, padding=1)
            x = pool(x, model.config.pool_size, model.config.pool_blur) if i == 0 else x
            x = F.gelu(normalise(x, norm, training))
    # Where windows overlap and filters begin as the identity, a maximum may stand in two places;
    # `amax` lets them share the gradient.
    features = x.amax((2, 3))
    return features @ model.classifier.weight.T * model.config.logit_scale


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"depth": 3}, {"pool_size": 3}, BLUR, WIDE_BLUR, {"whitening": False}]
)
def test_outputs_and_gradients_are_those_of_the_equation(training, options):
    model, x, labels = make(**options), some_pictures(), torch.arange(6) % 5
    # In fp64: whitening makes small differences large, and rounding with them.
    model, x = model.double(), x.double()
    if model.config.whitening:
        model.cnn.init_whitening(x)
    for group in model.cnn.groups:
        for norm in group.norms:
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    model.train(training)
    expected = by_hand(model, x, training)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected_grads = torch.autograd.grad(F.cross_entropy(expected, labels), parameters)
    outputs = model(x, labels=labels)
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(outputs.loss, parameters)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-5)


def test_whitening_makes_windows_uncorrelated():
    model, x = make().cnn, some_pictures(200)
    model.init_whitening(x)
    filters = model.whitening.weight
    assert torch.equal(filters[:12], -filters[12:])
    seen = model.whitening(x)[:, :12].transpose(0, 1).flatten(1)  # (12, windows)
    covariance = seen @ seen.T / seen.shape[1]
    # The least directions of smooth pictures have a variance of about eps, and come out smaller.
    large = torch.diag(covariance) > 0.5
    assert large.sum() >= 6
    expected = torch.eye(int(large.sum()))
    torch.testing.assert_close(covariance[large][:, large], expected, rtol=0, atol=0.1)
    off_diagonal = covariance - torch.diag(torch.diag(covariance))
    assert off_diagonal.abs().max() < 1e-3
    assert not list(model.whitening.parameters())


def test_what_is_not_trained_is_not_trained_after_loading_either(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = CNNForImageClassification.from_pretrained(tmp_path, dtype=torch.float32)
    trained = {name for name, _ in model.named_parameters()}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trained
    assert not [name for name in trained if "whitening" in name]
    assert not [name for name in trained if "norms" in name and name.endswith("weight")]
    assert torch.equal(loaded.cnn.whitening.weight, model.cnn.whitening.weight)


def test_a_computed_first_layer_may_be_learned_further(tmp_path):
    model = make()
    model.cnn.init_whitening(some_pictures())
    model.save_pretrained(tmp_path)
    further, loading = CNNForImageClassification.from_pretrained(
        tmp_path, whitening=False, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert torch.equal(further.cnn.whitening.weight, model.cnn.whitening.weight)
    assert further.cnn.whitening.weight.requires_grad


def test_whitening_wants_pictures_that_fit_it():
    with pytest.raises(ValueError, match="its first layer is learned"):
        make(whitening=False).cnn.init_whitening(some_pictures())
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
        make().cnn.init_whitening(some_pictures()[:, :1])
    with pytest.raises(ValueError, match="windows of pictures of 20 x 20 are smaller"):
        make(whitening_size=21).cnn.init_whitening(some_pictures())


def test_filters_begin_as_the_identity():
    model = make(hidden_sizes=[64, 32]).cnn
    for conv in (conv for group in model.groups for conv in group.convs):
        kept = min(conv.in_channels, conv.out_channels)
        x = torch.randn(1, conv.in_channels, 5, 5)
        assert torch.equal(conv(x)[:, :kept], x[:, :kept])
        beyond = conv.weight[kept:]
        assert not len(beyond) or (beyond.std() > 0.01 and beyond.std() < 0.2)


def test_the_starts_that_ours_are_compared_with():
    model = make(whitening=False, dirac_init=False).cnn
    assert model.whitening.weight.shape == make().cnn.whitening.weight.shape
    assert model.whitening.weight.requires_grad and model.whitening.weight.std() > 0.01
    first = model.groups[0].convs[0]
    assert not torch.equal(first.weight[:, :, 1, 1].diag(), torch.ones(first.in_channels))


def test_dropout_leaves_features_out_in_training_only():
    model, x = make(dropout=0.5).eval(), some_pictures()
    assert torch.equal(model(x).logits, model(x).logits)
    seen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.train()(x)
    assert 0.3 < (seen[0] == 0).float().mean() < 0.7


def test_features_are_of_the_last_grid():
    model = make().cnn.eval()
    outputs = model(some_pictures(2), output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (2, 32, 4, 4) and outputs.pooler_output.shape == (
        2,
        32,
    )
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state.amax((2, 3)))
    # After whitening and each group.
    assert [states.shape[-1] for states in outputs.hidden_states] == [19, 9, 4]
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
        model(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("options", "smallest"),
    [
        ({"pool_size": 1}, 2),
        ({"pool_size": 2}, 5),
        ({"pool_size": 3}, 8),
        (BLUR, 8),
        (WIDE_BLUR, 11),
    ],
)
def test_the_smallest_picture_leaves_one_place(options, smallest):
    model = make(**options).eval().cnn
    assert model.smallest_size() == smallest
    assert model(torch.zeros(1, 3, smallest, smallest)).last_hidden_state.shape == (1, 32, 1, 1)
    with pytest.raises(ValueError, match=f"{smallest} is the least"):
        model(torch.zeros(1, 3, smallest - 1, 40))


def test_the_card_says_how_it_pools():
    assert describe_model(make()).endswith("with pooling over windows of 2 x 2.")
    assert "mean of the maxima of its four windows of 2 x 2" in describe_model(make(**BLUR))


def test_labels_may_be_probabilities():
    model, x, labels = make().eval(), some_pictures(), torch.arange(6) % 5
    soft = F.one_hot(labels, 5).float()
    torch.testing.assert_close(model(x, labels=soft).loss, model(x, labels=labels).loss)


def test_a_picture_has_one_class_of_several():
    x = some_pictures()
    with pytest.raises(ValueError, match="these labels are for several"):
        make()(x, labels=torch.ones(6, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="num_labels is 1: there is nothing to choose"):
        make(num_labels=1)(x, labels=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem_type": "regression"}, "problem_type is 'regression'; a picture has one class"),
        ({"hidden_sizes": []}, "hidden_sizes is .*a list of whole numbers"),
        ({"depth": 0}, "depth is 0; it must be a whole number"),
        ({"whitening_size": 0}, "whitening_size is 0"),
        ({"pool_size": 0}, "pool_size is 0"),
        ({"pool_size": 2, "pool_blur": True}, "pool_size is 2; with pool_blur"),
        ({"hidden_act": "gelo"}, "'gelo' is unknown"),
        ({"batch_norm_momentum": 0.0}, r"must be in \(0, 1\]"),
        ({"initializer_range": 0.0}, "must be above 0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must be above 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CNNConfig(**options)


def test_sizes_are_a_list_in_the_saved_config():
    assert make().config.to_dict()["hidden_sizes"] == [26, 32]
