"""ResNet against independent oracles: torchvision's and transformers' as wholes, and the papers."""

import json
import math

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import ResNetConfig as TheirConfig
from transformers import ResNetForImageClassification as TheirResNet
from transformers import ViTImageProcessor, pipeline
from transformers.trainer_pt_utils import LabelSmoother

from groundup.models.from_resnets import (
    resnet_from_torchvision,
    resnet_from_transformers,
    tensors_from,
)
from groundup.models.resnet import (
    PRESETS,
    DropPath,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    Stage,
)

close = {"rtol": 1e-5, "atol": 1e-5}
TINY = {
    "stem": "cifar",
    "embedding_size": 8,
    "hidden_sizes": (8, 16),
    "depths": (3, 2),
    "num_labels": 5,
}


def stir(model):
    """Random numbers in every norm and bias: fresh ones (1, 0) would hide a mix-up."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 0.9)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, nn.Linear):
                module.bias.normal_(0, 0.2)
    return model


def make_resnet(**options) -> ResNetForImageClassification:
    """A tiny ResNet for CIFAR's pictures with random norms."""
    torch.manual_seed(1)
    return stir(ResNetForImageClassification(ResNetConfig(**(TINY | options)))).eval()


def pictures(batch: int = 2, height: int = 33, width: int = 47) -> torch.Tensor:
    """Noise, of another colour and contrast in each picture: the mean over a grid tells them."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(batch, 3, height, width, generator=generator)
    return noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1) + noise[:, :, :1, :1]


# ------------------------------------------------- the same as torchvision's and transformers'


def make_theirs(name: str) -> TheirResNet:
    """Narrow, with the true depths: the width changes nothing but the time."""
    bottleneck = name == "resnet50"
    return TheirResNet(
        TheirConfig(
            embedding_size=16,
            hidden_sizes=(64, 128, 256, 512) if bottleneck else (16, 32, 64, 128),
            depths=PRESETS[name]["depths"],
            layer_type="bottleneck" if bottleneck else "basic",
            id2label={i: f"class {i}" for i in range(6)},
            label2id={f"class {i}": i for i in range(6)},
        )
    )


def one_step(model, images, labels) -> tuple[torch.Tensor, dict]:
    """Logits, and the gradient of the loss by each parameter."""
    model.zero_grad()
    outputs = model(images)
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    F.cross_entropy(logits, labels).backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("library", ["torchvision", "transformers"])
def test_outputs_and_gradients_are_theirs(library, name):
    """With the statistics of the batch and with running ones; the step moves them alike."""
    torch.manual_seed(0)
    if library == "torchvision":
        reference = stir(getattr(torchvision.models, name)(num_classes=6))
        model = resnet_from_torchvision(reference)
        assert model.config.to_dict() == ResNetConfig(**PRESETS[name], num_labels=6).to_dict()
    else:
        reference = stir(make_theirs(name))
        model = resnet_from_transformers(reference)
        assert model.config.id2label == reference.config.id2label
    assert model.training
    for labels in ([4], [5, 0]):
        batch = pictures(len(labels)), torch.tensor(labels)
        for training in (False, True):
            logits, ours = one_step(model.train(training), *batch)
            expected, theirs = one_step(reference.train(training), *batch)
            assert_close(logits, expected, **close)
            theirs = tensors_from(library, theirs, ours)
            for key, gradient in ours.items():
                atol = 1e-5 * min(1, gradient.abs().max().item())  # small ones no less exactly
                assert_close(gradient, theirs[key], rtol=1e-5, atol=atol, msg=key)
    state = model.state_dict()  # with running statistics, which training has moved
    for key, tensor in tensors_from(library, reference.state_dict(), state).items():
        assert_close(state[key], tensor, **close)
    assert state["resnet.stem.norm.num_batches_tracked"] == 2


def test_hidden_states_are_those_of_transformers():
    reference = stir(make_theirs("resnet18")).eval()
    model = resnet_from_transformers(reference)
    found, expected = (
        one(pictures(), output_hidden_states=True).hidden_states for one in (model, reference)
    )
    assert len(found) == len(expected) == 5
    assert_close(found, expected, **close)


def test_a_folder_of_another_model_is_refused(tmp_path):
    make_resnet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no ResNetForImageClassification of transformers"):
        resnet_from_transformers(tmp_path)


def test_their_other_strides_are_taken_over(tmp_path):
    """The paper's bottleneck halves in its first convolution. From a folder, in bf16."""
    torch.manual_seed(0)
    options = {"downsample_in_bottleneck": True, "downsample_in_first_stage": True}
    config = TheirConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 2), **options)
    reference = stir(TheirResNet(config)).bfloat16().eval()
    reference.save_pretrained(tmp_path)
    model = resnet_from_transformers(str(tmp_path))
    assert model.dtype == torch.bfloat16 and not model.training
    reference, model, images = reference.float(), model.float(), pictures(height=64, width=64)
    expected = reference.resnet(images).last_hidden_state
    assert_close(model.resnet(images).last_hidden_state, expected, **close)
    block = model.resnet.stages[1].blocks[0]
    block.branch[0].conv.stride, block.branch[1].conv.stride = (1, 1), (2, 2)
    assert (model.resnet(images).last_hidden_state - expected).abs().max() > 1e-2


def test_a_torchvision_resnet_with_a_stem_for_cifar():
    block = torchvision.models.resnet.BasicBlock
    reference = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    stir(reference).eval()
    model = resnet_from_torchvision(reference)
    assert model.config.stem == "cifar"
    images = pictures(1, 16, 16)
    assert_close(model(images).logits, reference(images), **close)


def other_stem():
    model = torchvision.models.resnet18()
    model.maxpool = nn.AvgPool2d(2)
    return model


def other_pool():
    model = torchvision.models.resnet18()
    model.maxpool = nn.MaxPool2d(2)  # the same shapes, and other answers
    return model


def other_mean():
    model = torchvision.models.resnet18()
    model.avgpool = nn.AdaptiveMaxPool2d(1)
    return model


def head_with_dropout():
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 10))
    return model


def longer_head():
    model = torchvision.models.resnet18()
    model.fc.extra = nn.Linear(2, 2)
    return model


def tiny_reference(**options):
    return TheirResNet(TheirConfig(embedding_size=8, hidden_sizes=(8,), depths=(1,), **options))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torchvision.models.resnext50_32x4d(), "groups=32"),
        (lambda: torchvision.models.wide_resnet50_2(), "base_width=128"),
        (lambda: torchvision.models.resnet18(norm_layer=nn.InstanceNorm2d), "_norm_layer"),
        (
            lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]),
            "dilation=2",
        ),
        (lambda: torchvision.models.alexnet(), "AlexNet"),
        (other_stem, "AvgPool2d"),
        (other_pool, "kernel_size=2"),
        (other_mean, "AdaptiveMaxPool2d"),
        (head_with_dropout, "one linear layer"),
        (longer_head, r"fc\.extra\.weight"),
        (lambda: tiny_reference(hidden_act="gelu"), "hidden_act='gelu'"),
        (
            lambda: tiny_reference(problem_type="multi_label_classification"),
            "problem_type is 'multi_label_classification'",
        ),
    ],
)
def test_what_ours_cannot_do_is_refused_in_one_line(make, message):
    with torch.device("meta"):  # shapes are enough
        reference = make()
    theirs = isinstance(reference, TheirResNet)
    convert = resnet_from_transformers if theirs else resnet_from_torchvision
    with pytest.raises(ValueError, match=message) as error:
        convert(reference)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ what papers say


@pytest.mark.parametrize(
    "name, layers, millions", [("resnet20_cifar", 20, 0.27), ("resnet56_cifar", 56, 0.85)]
)
def test_cifar_networks_are_as_large_as_in_the_paper(name, layers, millions):
    """He et al. 2015, table 6."""
    model = ResNetForImageClassification(ResNetConfig(**PRESETS[name], num_labels=10))
    assert round(model.num_parameters() / 1e6, 2) == millions
    weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == layers
    assert model.resnet(pictures(2, 32, 32)).last_hidden_state.shape == (2, 64, 8, 8)


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_blocks_pass_on_what_they_get_at_the_start(layer_type, pre_activation):
    torch.manual_seed(0)
    options = {"layer_type": layer_type, "pre_activation": pre_activation}
    fresh = ResNetModel(ResNetConfig(**(TINY | options))).train()
    stem, first, _ = fresh(pictures(), output_hidden_states=True).hidden_states
    assert torch.equal(first, stem) and stem.any()
    for block in fresh.stages[1].blocks[1:]:
        hidden = torch.rand(2, 16, 5, 5)
        assert torch.equal(block(hidden), hidden)
    full = ResNetModel(ResNetConfig(**(TINY | options), zero_init_residual=False)).train()
    stem, first, _ = full(pictures(), output_hidden_states=True).hidden_states
    assert (first - stem).abs().mean() > 0.1


def silence(block: nn.Module) -> None:
    """Makes the branch of a block give nothing."""
    last = block.branch[-1]
    nn.init.zeros_(last.norm.weight if hasattr(last, "norm") else last.weight)
    if hasattr(last, "norm"):
        nn.init.zeros_(last.norm.bias)


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("shortcut", ["projection", "zero_pad", "none"])
def test_only_a_plain_network_needs_every_branch(shortcut, pre_activation):
    model = make_resnet(shortcut=shortcut, pre_activation=pre_activation).resnet.train()

    def difference():
        one, two = model(pictures()).last_hidden_state
        return (one - two).abs().max()

    assert difference() > 1
    silence(model.stages[0].blocks[1])
    if shortcut == "none":
        assert difference() < 1e-3, "something passes by the branch"
        assert not any("shortcut" in name for name, _ in model.named_parameters())
    else:
        assert difference() > 1


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
def test_no_channel_is_dead_at_the_start(shortcut, layer_type, pre_activation):
    """A ReLU of nothing but zeros has no gradient, so a scale of zero would stay zero."""
    torch.manual_seed(0)
    options = {
        "shortcut": shortcut,
        "layer_type": layer_type,
        "pre_activation": pre_activation,
    }
    model = ResNetForImageClassification(ResNetConfig(**(TINY | options))).train()
    model(pictures(8, 32, 32), labels=torch.arange(8) % model.config.num_labels).loss.backward()
    for stage in model.resnet.stages:
        for block in stage.blocks:
            last = block.branch[-1]
            weight = (last if pre_activation else last.norm).weight
            assert weight.grad.reshape(len(weight), -1).any(1).all()


def test_a_plain_network_does_not_start_at_zero():
    model = ResNetModel(ResNetConfig(**TINY, shortcut="none", zero_init_residual=True))
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_padded_shortcut_takes_every_other_pixel():
    model = make_resnet(shortcut="zero_pad").resnet
    block = model.stages[1].blocks[0]
    silence(block)
    hidden = torch.rand(2, 8, 5, 6)
    found = block(hidden)
    assert torch.equal(found[:, :8], hidden[:, :, ::2, ::2])
    assert found.shape == (2, 16, 3, 3) and not found[:, 8:].any()


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_pre_activation_is_the_equation_of_the_paper(layer_type):
    """x = h(x) + W f(norm(... W f(norm(x)))), written once more with the bare functions."""
    model = make_resnet(pre_activation=True, layer_type=layer_type)
    state = model.resnet.state_dict()

    def act(x, name):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).relu()

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = act(conv(pictures(), "stem.conv"), "stem.norm")
    halving = 0 if layer_type == "basic" else 1  # which convolution has the stride
    for stage, depth in enumerate(TINY["depths"]):
        for i in range(depth):
            name = f"stages.{stage}.blocks.{i}"
            stride = 2 if stage == 1 and i == 0 else 1
            first = stage == i == 0
            activated = x if first else act(x, f"{name}.pre_activation.norm")
            branch = activated
            for k in range(2 if layer_type == "basic" else 3):
                if k:
                    branch = act(branch, f"{name}.branch.{2 * k - 1}.norm")
                step = stride if k == halving else 1
                branch = conv(branch, f"{name}.branch.{2 * k}", step)
            x = branch + (conv(activated, f"{name}.shortcut", 2) if stride == 2 else x)
    expected = act(x, "norm.norm")
    found = model.resnet(pictures())
    assert_close(found.last_hidden_state, expected, **close)
    assert_close(found.pooler_output, expected.mean((2, 3)), **close)


def test_other_activations_stand_everywhere():
    model = make_resnet(hidden_act="gelu")
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 0
    assert model.resnet(pictures(), output_hidden_states=True).hidden_states[1].min() < 0


def test_stochastic_depth_skips_examples_more_often_the_deeper():
    model = make_resnet(drop_path_rate=0.5)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert_close(model(pictures()).logits, make_resnet()(pictures()).logits)  # not in evaluation

    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    dropped = drop(torch.ones(4000, 2, 3, 3))
    per_example = dropped[:, 0, 0, 0]
    assert torch.equal(dropped, per_example.view(-1, 1, 1, 1).expand_as(dropped))
    assert sorted(set(per_example.tolist())) == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


# --------------------------------------------------------------------------------- inputs, labels


def test_labels_may_be_numbers_or_probabilities():
    model = make_resnet()
    images, numbers = pictures(3), torch.tensor([4, 0, 2])
    loss = model(images, labels=numbers).loss
    logits = model(images).logits
    expected = -logits.log_softmax(-1)[range(3), numbers].mean()
    assert_close(loss, expected)
    assert_close(model(images, labels=F.one_hot(numbers, 5)).loss, loss)
    mixed = 0.3 * F.one_hot(numbers, 5) + 0.7 * F.one_hot(numbers.flip(0), 5)
    parts = [model(images, labels=n).loss for n in (numbers, numbers.flip(0))]
    assert_close(model(images, labels=mixed).loss, 0.3 * parts[0] + 0.7 * parts[1])


def test_trainers_label_smoothing_fits():
    model, labels = make_resnet(), torch.tensor([4, 0])
    outputs = model(pictures())
    expected = F.cross_entropy(outputs.logits, labels, label_smoothing=0.2)
    assert_close(LabelSmoother(epsilon=0.2)(outputs, labels), expected)


def test_pictures_are_taken_in_the_dtype_of_the_model():
    """Weights may be in bf16; an image processor gives pictures in fp32."""
    model = make_resnet().bfloat16()
    assert model(pictures()).logits.dtype == torch.bfloat16


def test_tuples_and_hidden_states_where_they_are_asked_for():
    model = make_resnet()
    outputs = model(pictures(), output_hidden_states=True)
    sizes = [tuple(h.shape[1:]) for h in outputs.hidden_states]
    assert sizes == [(8, 33, 47), (8, 33, 47), (16, 17, 24)]
    assert model(pictures()).hidden_states is None
    (logits,) = model(pictures(), return_dict=False)
    assert torch.equal(logits, outputs.logits)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8)])
def test_other_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
        make_resnet()(torch.zeros(shape))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_channels": 0}, "num_channels is 0; it must be a whole number"),
        ({"hidden_sizes": []}, "hidden_sizes is .*a list of whole numbers"),
        ({"hidden_sizes": 64}, "hidden_sizes is 64; it must be a list"),
        ({"depths": [2, 0, 2, 2]}, "depths is .*at least 1"),
        ({"depths": [2, 2]}, "must be equally long"),
        ({"stem": "mnist"}, "imagenet, cifar"),
        ({"layer_type": "wide"}, "basic, bottleneck"),
        ({"shortcut": "identity"}, "projection, zero_pad, none"),
        ({"hidden_act": "rellu"}, "'rellu' is unknown"),
        ({"drop_path_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"shortcut": "none", "drop_path_rate": 0.1}, "set drop_path_rate=0"),
        ({"shortcut": "zero_pad", "hidden_sizes": [64, 32, 32, 16]}, "only add channels"),
        ({"layer_type": "bottleneck", "hidden_sizes": [62, 64, 64, 64]}, "that 4 divides"),
        ({"downsample_in_bottleneck": True}, "needs layer_type='bottleneck'"),
        ({"initializer_range": 0.0}, "must be above 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**options)


def test_new_weights_are_drawn_as_he_et_al_do():
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(**PRESETS["resnet18"], num_labels=1000))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            out_channels, _, size, _ = module.weight.shape
            std = math.sqrt(2 / (out_channels * size**2))
            assert module.weight.std().item() == pytest.approx(std, rel=0.05), name
        elif isinstance(module, nn.BatchNorm2d):
            ends_branch = name.endswith("branch.1.norm")
            assert (module.weight == (0 if ends_branch else 1)).all() and not module.bias.any()
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert sum(isinstance(m, Stage) for m in model.modules()) == 4


# -------------------------------------------------------------------------------------- pipeline


def test_a_saved_model_works_in_a_pipeline(tmp_path):
    """With a library's image processor, and pictures of any kind."""
    labels = ["cat", "dog", "frog", "horse", "ship"]
    model = make_resnet(id2label=dict(enumerate(labels)))
    model.save_pretrained(tmp_path)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    size = {"height": 32, "width": 32}
    processor = ViTImageProcessor(size=size, image_mean=mean, image_std=std, do_convert_rgb=True)
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ViTImageProcessor" and "auto_map" not in settings

    classify = pipeline("image-classification", str(tmp_path))
    noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(3))
    exact = Image.fromarray(noise.byte().numpy())
    scaled = (noise / 255 - torch.tensor(mean)) / torch.tensor(std)
    expected = model(scaled.permute(2, 0, 1)[None]).logits.softmax(-1)[0]
    found = {answer["label"]: answer["score"] for answer in classify(exact, top_k=5)}
    assert found == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5)

    kinds = [exact.resize((1900, 1300)), exact.convert("L"), exact.convert("P"), exact.convert("1")]
    kinds += [
        exact.convert("RGBA"),
        exact.convert("LA"),
        exact.resize((1, 1)),
        exact.resize((3000, 1)),
    ]
    for image in kinds:
        answers = classify(image)
        assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
        assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("options", [{}, {"pre_activation": True}, {"layer_type": "bottleneck"}])
def test_folded_norms_give_the_same_answers(options):
    model = make_resnet(**options)
    pictures = torch.randn(3, 3, 12, 12)
    expected = model(pictures).logits
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert_close(model.fold_norms()(pictures).logits, expected, **close)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert left < norms and (left == 0 or options == {"pre_activation": True})
    assert_close(model.fold_norms()(pictures).logits, expected, **close)  # twice is as once
    with pytest.raises(ValueError, match="save it before `fold_norms`"):
        model.save_pretrained("not-made")
