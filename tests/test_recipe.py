"""Runs: their arguments, the folder they leave, and what happens when they are stopped or wrong.

The vehicle is train/gpt.py with a network of two thousand parameters on a text of its own.
"""

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import matplotlib.pyplot as plt
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, pipeline

from groundup import models, results
from groundup.data_scripts.tokenization import TokenBlocks
from groundup.models.resnet import ResNetConfig
from groundup.train import gpt, machine, recipe, report

ROOT = Path(gpt.__file__).parent.parent
STEPS = 6
TINY = f"""
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
max_position_embeddings: 16
hidden_dropout: 0.1
attention_dropout: 0.1
attn_implementation: eager
max_steps: {STEPS}
per_device_train_batch_size: 8
per_device_eval_batch_size: 64
muon_learning_rate: 0.02
learning_rate: 5e-3
warmup_steps: 2
eval_strategy: steps
eval_steps: {STEPS}
save_steps: 2
logging_steps: 1
disable_tqdm: true
seed: 0
"""
WORDS = ["the", "a", "king", "queen", "fool", "walks", "sings", "with", "sword", "crown", "night"]


def toy_text(sentences: int = 500) -> str:
    """Sentences of random words: 20 kB."""
    choose = random.Random(0).choice
    return "\n".join(" ".join(choose(WORDS) for _ in range(8)) for _ in range(sentences))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny run into this folder."""
    files = tmp_path_factory.mktemp("files")
    (files / "toy.txt").write_text(toy_text())
    (files / "tiny.yaml").write_text(TINY)

    def make(folder: Path, *more: str) -> list[str]:
        config, text = str(files / "tiny.yaml"), str(files / "toy.txt")
        return ["--config", config, "--text", text, "--output_dir", str(folder), *more]

    return make


@contextlib.contextmanager
def interrupted_at(step: int):
    """What runs in here is stopped, as by Ctrl-C, in this update, and must come so far."""
    on_step_end = recipe.Stopwatch.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        on_step_end(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(recipe.Stopwatch, "on_step_end", stop)
        yield


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a whole run. Only to be read: copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    gpt.main(flags(folder))
    return folder


@pytest.fixture(scope="module")
def unfinished(flags, tmp_path_factory):
    """The same, stopped in update 5: checkpoints of 2 and 4 stand."""
    folder = tmp_path_factory.mktemp("unfinished")
    with interrupted_at(5):
        gpt.main(flags(folder))
    return folder


@pytest.fixture
def copy_of(tmp_path):
    """`copy_of(folder)`: a copy of a run that may be changed."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_refused(capsys, arguments: list[str], *words: str, main=gpt.main) -> None:
    """Exit status 2, and one line on stderr that has these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for word in words:
        assert word in lines[0]


# -------------------------------------------------------------------------------------- arguments


def parse(*argv: str):
    """(name, data arguments, model arguments, run arguments) of train/gpt.py."""
    return recipe.parse_arguments(
        argv, "gpt", gpt.DataArguments, gpt.ModelArguments, description="A test."
    )


@pytest.fixture
def yaml_file(tmp_path):
    """`yaml_file(text)`: a config of this content; gives its path."""

    def write(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def test_a_flag_beats_the_file_which_beats_the_default(yaml_file):
    path = yaml_file("max_steps: 7\nhidden_size: 32\nprompt: king")
    name, data, model, args = parse("--config", path, "--max_steps", "9")
    assert name == "mine"
    assert Path(args.output_dir) == Path("runs/mine")
    assert (args.max_steps, model.hidden_size, data.prompt) == (9, 32, "king")
    assert model.num_hidden_layers == gpt.GPTConfig.num_hidden_layers
    assert args.learning_rate == recipe.RunArguments.learning_rate


def test_without_flags_the_row_has_its_own_config():
    name, _, model, args = parse()
    assert name == "gpt" and Path(args.output_dir) == Path("runs/gpt")
    settings = recipe.yaml.safe_load((recipe.CONFIGS / "gpt.yaml").read_text())
    assert args.max_steps == settings["max_steps"]
    assert model.hidden_size == settings["hidden_size"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 1e-3", 0.001),  # a string, to YAML
        ("learning_rate: 1", 1.0),
        ("max_steps: 5", 5),
        ("bf16: true", True),
        ("bf16: no", False),
        ("tie_word_embeddings: false", False),
        ("bf16: 'yes'", True),
        ("intermediate_size: null", None),
        ("muon_learning_rate: 2e-2", 0.02),
        ("include_for_metrics: [inputs, loss]", ["inputs", "loss"]),
        ("lr_scheduler_kwargs: {num_cycles: 2}", {"num_cycles": 2}),
        ("prompt: '--- first: '", "--- first: "),
        ("intermediate_size: 48", 48),
        ("hub_model_id: 007", "7"),  # what YAML makes of it
    ],
)
def test_values_of_the_file_get_their_type(yaml_file, line, value, monkeypatch):
    monkeypatch.setattr(machine, "has_bf16_kernel", lambda device_type: True)
    name = line.partition(":")[0]
    parts = parse("--config", yaml_file(line))[1:]
    found = next(getattr(part, name) for part in parts if hasattr(part, name))
    assert found == value and type(found) is type(value)


def test_whoever_says_how_often_to_save_gets_it_whatever_the_config_says(yaml_file):
    never = yaml_file('save_strategy: "no"\neval_strategy: epoch\nsave_steps: 9')
    args = parse("--config", never)[-1]
    assert (args.save_strategy, args.eval_strategy) == ("no", "epoch")
    args = parse("--config", never, "--save_steps", "5", "--eval-steps=2")[-1]
    assert (args.save_strategy, args.save_steps) == ("steps", 5)
    assert (args.eval_strategy, args.eval_steps) == ("steps", 2)
    args = parse("--config", never, "--save_steps=5", "--save_strategy=epoch")[-1]
    assert args.save_strategy == "epoch"
    assert parse("--config", yaml_file("eval_steps: 3"))[-1].eval_strategy == "steps"


def test_a_run_too_short_to_log_a_loss_has_a_figure_that_says_so(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    with warnings.catch_warnings(action="error"):  # as of a legend of nothing
        report.plot_loss([{"step": 3}], tmp_path / "loss.png", {"loss": "l"}, marks={2: "here"})
    assert kept[0].axes[0].get_title().startswith("no losses were logged")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_what_is_gathered_from_shards_generates_as_the_model_did():
    """`whole_model` under FSDP, which no CPU has: its parts are stood in for."""
    model = gpt.GPTForCausalLM(gpt.GPTConfig(vocab_size=9, hidden_size=8, num_attention_heads=2))
    model.generation_config.max_new_tokens = 7
    trainer = Mock(is_fsdp_enabled=True, _model_class=gpt.GPTForCausalLM)
    trainer.accelerator.unwrap_model.return_value = model
    trainer.accelerator.get_state_dict.return_value = model.state_dict()
    whole = recipe.RunTrainer.whole_model(trainer)
    assert whole is not model and whole.generation_config.max_new_tokens == 7
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor)


def test_no_setting_of_a_model_may_change_within_a_run():
    modules = [module for module in vars(models).values() if hasattr(module, "AUTO_MAP")]
    assert len(modules) > 5
    for module in modules:
        config_class = getattr(module, module.AUTO_MAP["AutoConfig"].split(".")[1])
        for setting in dataclasses.fields(recipe.model_arguments(config_class)):
            assert not recipe.FREE.match(setting.name), setting.name
    for flag in ("log_level", "logging_steps", "prompt", "data_dir", "save_steps"):
        assert recipe.FREE.match(flag)


def test_a_setting_that_an_older_run_did_not_know_had_its_default(
    finished, tmp_path, flags, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings.pop("lora_rank") == 0 and settings.pop("initializer_range") == 0.02
    (folder / "settings.json").write_text(json.dumps(settings | {"forgotten": False}))
    with pytest.raises(SystemExit) as stopped:
        gpt.main(flags(folder))
    assert stopped.value.code == 0 and "holds a finished run" in capsys.readouterr().out
    (folder / "settings.json").write_text(json.dumps(settings | {"forgotten": 3}))
    assert_refused(capsys, flags(folder), "other settings (forgotten was 3, is None)")
    (folder / "settings.json").write_text(json.dumps(settings))
    more = [*flags(folder), "--initializer_range", "0.1"]
    assert_refused(capsys, more, "other settings (initializer_range was 0.02, is 0.1)")


@pytest.fixture
def no_bf16_kernel(monkeypatch):
    """A CPU that computes in bf16 number by number."""
    monkeypatch.setattr(machine, "has_bf16_kernel", lambda device_type: device_type != "cpu")


def test_a_run_goes_on_in_fp32_where_bf16_is_slow(
    unfinished, copy_of, flags, capsys, no_bf16_kernel, monkeypatch
):
    folder = copy_of(unfinished)
    for path in (folder / "settings.json", *folder.glob(f"checkpoint-*/{recipe.MANIFEST}")):
        content = json.loads(path.read_text())
        content |= {"bf16": True} if path.name == "settings.json" else {"precision": "bf16"}
        path.write_text(json.dumps(content))
    in_bf16, forward = [], gpt.GPTForCausalLM.forward

    @functools.wraps(forward)  # Trainer asks for its arguments
    def spy(*args, **kwargs):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return forward(*args, **kwargs)

    monkeypatch.setattr(gpt.GPTForCausalLM, "forward", spy)
    run = gpt.main([*flags(folder), "--bf16", "true"])
    assert in_bf16 and not any(in_bf16)
    told = capsys.readouterr().out
    assert "slow in bf16: the run is in fp32" in told and "resuming from" in told
    assert run["precision"] == "bf16, then fp32"
    assert "s of optimisation in bf16, then fp32," in (folder / "README.md").read_text()


@pytest.mark.parametrize("flag", ["--bf16", "--bf16_full_eval", "accelerate launch"])
def test_no_way_leads_to_bf16_where_it_is_slow(flag, no_bf16_kernel, monkeypatch, capsys):
    if flag == "accelerate launch":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        args = parse()[-1]
    else:
        args = parse(flag, "true")[-1]
    assert (args.precision, args.mixed_precision) == ("fp32", "no")
    assert not args.bf16 and not args.bf16_full_eval
    assert "slow in bf16" in capsys.readouterr().out


def test_memory_is_given_back_by_time_and_by_updates(monkeypatch):
    now, given_back = [0.0], []
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine, "release_freed_memory", lambda: given_back.append(now[0]))
    tidy = recipe.Tidy()
    for now[0] in (10.0, 19.0, 21.0, 30.0, 42.0):
        tidy.on_step_end()
    assert given_back == [21.0, 42.0]
    for _ in range(80):  # 10 a second, then quicker ones
        now[0] += 0.1
        tidy.on_step_end()
    for _ in range(110):
        now[0] += 0.02
        tidy.on_step_end()
    assert given_back[2:] == pytest.approx([47.0, 50.4], abs=0.15)


def test_a_list_is_a_flag_and_a_line_of_yaml(yaml_file):
    """The stages of a ResNet; and it has no attention, whose kernel could be chosen."""
    arguments = recipe.model_arguments(ResNetConfig)

    def model_of(*argv):
        return recipe.parse_arguments(argv, "gpt", arguments, description="A test.")[1]

    path = yaml_file("depths: [3, 3]\nhidden_sizes: [16, 32]")
    model = model_of("--config", path, "--depths", "1", "2")
    assert (model.depths, model.hidden_sizes) == ([1, 2], [16, 32])
    assert ResNetConfig(**asdict(model)).depths == [1, 2]
    default = model_of("--config", yaml_file(""))
    assert ResNetConfig(**asdict(default)).to_dict() == ResNetConfig().to_dict()


def test_hyphens_are_underscores_and_equals_signs_are_spaces(yaml_file):
    path = yaml_file("max_steps: 7")
    assert parse(f"--config={path}", "--num-hidden-layers=3")[2].num_hidden_layers == 3
    assert parse("--config", path, "--max-steps", "3")[3].max_steps == 3
    assert parse("--max_steps", "3", f"--config={path}")[3].max_steps == 3  # in any order
    assert parse("--prompt=a-b", "--text", "my-book.txt")[1].prompt == "a-b"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rat", "3"], ["unknown flag: --learning_rat;", "mean --learning_rate?"]),
        (["--num-hiden-layers=3"], ["--num_hiden_layers;", "mean --num_hidden_layers?"]),
        (["--xyzzy", "3"], ["unknown flag: --xyzzy;", "--help"]),
        (["--max_step", "3"], ["unknown flag: --max_step;", "--max_steps?"]),  # no abbreviation
        (["--max_steps", "many"], ["--max_steps", "many"]),
        (["--max_steps", "1.5"], ["--max_steps", "1.5"]),
        (["--max_steps", "0"], ["trains nothing", "--max_steps"]),
        (["--max_steps", "-1", "--num_train_epochs", "0"], ["trains nothing", "--max_steps"]),
        (["--per_device_train_batch_size", "0"], ["--per_device_train_batch_size is 0"]),
        (["--gradient_accumulation_steps", "-1"], ["--gradient_accumulation_steps is -1"]),
        (["--save_steps", "0"], ["--save_steps is 0; give 1 or more, or --save_strategy no"]),
        (["--eval_steps", "-2"], ["--eval_steps is -2; give 1 or more, or --eval_strategy no"]),
        (["--learning_rate=-1"], ["--learning_rate is -1.0; it must be 0 or more"]),
        (["--config", "configs/gpt_dickns.yaml"], ["did you mean gpt_dickens.yaml?"]),
        (["--bf16", "ture"], ["--bf16", "ture", "true/false"]),
        (["--lr_scheduler_type", "cosinus"], ["--lr_scheduler_type", "cosinus", "cosine"]),
        (
            ["--config", str(recipe.CONFIGS / "cnn.yaml")],
            ["cnn.yaml: flip; is the file for another"],
        ),
        (["--config", "no/such.yaml"], ["there is no config no/such.yaml", "gpt.yaml"]),
        (["--config=no/such.yaml"], ["there is no config no/such.yaml", "gpt.yaml"]),
        (["--config"], ["--config needs the path of a YAML file"]),
        (["--max_steps"], ["--max_steps", "expected"]),
    ],
)
def test_a_wrong_flag_is_one_line(capsys, flags, words):
    assert_refused(capsys, flags, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hiden_size: 3", ["unknown key", "hiden_size", "did you mean hidden_size?"]),
        ("max-steps: 3", ["unknown key", "max-steps", "did you mean max_steps?"]),
        ("max_steps: many", ["--max_steps", "many"]),
        ("bf16: ture", ["--bf16", "ture"]),
        ("a: [1", ["is not YAML", "line 1"]),
        ("- max_steps\n- 3", ["must hold lines of `key: value`"]),
        ("just words", ["must hold lines of `key: value`"]),
    ],
)
def test_a_wrong_config_is_one_line_that_names_it(capsys, yaml_file, text, words):
    assert_refused(capsys, ["--config", yaml_file(text)], "mine.yaml", *words)


def test_an_empty_config_changes_nothing(yaml_file):
    assert parse("--config", yaml_file("# nothing"))[3].max_steps == -1


def test_help_is_one_page(capsys, yaml_file):
    with pytest.raises(SystemExit) as stopped:
        gpt.main(["--config", yaml_file("max_steps: 1234\neval_steps: 100"), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 70
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    own = {f.name for kind in (gpt.DataArguments, gpt.ModelArguments) for f in kind_fields(kind)}
    assert own | set(recipe.SHOWN) | {"config", "overwrite", "muon_learning_rate"} <= shown
    assert "ddp_bucket_cap_mb" not in text and "SUPPRESS" not in text
    assert "(default: 100)" in text and "100.0" not in text  # eval_steps are floats to Trainer
    assert "(default: 1234)" in text  # what would be used, not what transformers would use


def kind_fields(kind):
    return recipe.dataclasses.fields(kind)


# -------------------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_it_should(finished):
    files = content(finished)
    in_checkpoints = {name for name in files if name.startswith("checkpoint-")}
    assert {name.split("/")[0] for name in in_checkpoints} == {f"checkpoint-{n}" for n in (2, 4, 6)}
    assert not any(name.endswith("training_args.bin") for name in files)  # a pickle nobody reads
    assert files.keys() - in_checkpoints == {
        *("model.safetensors", "config.json", "generation_config.json", "gpt.py", "transformer.py"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "metrics.json", "settings.json"),
        "figures/loss.png",
    }
    for name in ("gpt.py", "transformer.py"):
        assert files[name] == (ROOT / "models" / name).read_bytes()
    assert json.loads(files["config.json"])["use_cache"] is True
    width, height = Image.open(finished / "figures" / "loss.png").size
    assert width >= 400 and height >= 200


def test_metrics_json_says_it_all(finished):
    run = json.loads((finished / "metrics.json").read_text())
    assert set(run) == {
        *("system", "config", "metrics", "data", "seed", "train_seconds", "peak_memory_bytes"),
        *("hardware", "versions", "commit", "command", "processes", "precision"),
    }
    assert (run["system"], run["config"], run["seed"]) == ("gpt", "tiny", 0)
    assert set(run["data"]) == {"name", "source", "license", "fingerprint"}
    exact = json.loads((finished / f"checkpoint-{STEPS}" / recipe.MANIFEST).read_text())
    assert 0 < exact["train_seconds"] < 60
    assert run["train_seconds"] == pytest.approx(exact["train_seconds"], abs=0.051)
    assert 2**25 < run["peak_memory_bytes"] < 2**35
    assert {"python", "torch", "transformers"} <= set(run["versions"])
    score = run["metrics"]["nats_per_character"]
    assert 1 < score < 3.3  # to guess among 27 characters costs ln 27
    assert run["metrics"]["bits_per_character"] == pytest.approx(score / 0.6931472)


def test_the_card_can_be_read_by_the_hub(finished):
    card = ModelCard.load(finished / "README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert "license" not in front and "language" not in front  # nobody knows, of a text like this
    (entry,) = front["model-index"]
    run = json.loads((finished / "metrics.json").read_text())
    score = entry["results"][0]["metrics"][0]
    assert score["type"] == "nats_per_character"
    assert score["value"] == pytest.approx(run["metrics"]["nats_per_character"], abs=1e-4)
    assert entry["results"][0]["dataset"]["name"] == "toy"
    for text in ("## Use", "## Samples", "## What it is not good for", "figures/loss.png"):
        assert text in card.text
    assert run["data"]["license"] in card.text and run["versions"]["torch"] in card.text
    assert "{{" not in card.text and "{%" not in card.text


def test_the_saved_model_writes(finished):
    write = pipeline("text-generation", str(finished))
    (answer,) = write("the king", max_new_tokens=8, do_sample=False)
    assert answer["generated_text"].startswith("the king")
    assert len(answer["generated_text"]) > len("the king")


# -------------------------------------------------------------------------- the same command again


def test_a_finished_run_says_so_and_stops(finished, flags, capsys):
    before = content(finished)
    with pytest.raises(SystemExit) as stopped:
        gpt.main(flags(finished))
    assert stopped.value.code == 0
    assert "holds a finished run; --overwrite starts anew" in capsys.readouterr().out
    assert content(finished) == before


def losses(folder: Path) -> list[float]:
    """The loss of each update, from the last checkpoint."""
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def assert_same_bits(one: Path, other: Path, step: int = STEPS) -> None:
    """The same model, and the same optimiser, schedule and random numbers behind it."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        a, b = (
            torch.load(folder / f"checkpoint-{step}" / name, weights_only=True)
            for folder in (one, other)
        )
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_an_unfinished_run_resumes_to_the_same_bits(finished, unfinished, copy_of, flags, capsys):
    """With dropout, and both halves of the optimiser."""
    folder = copy_of(unfinished)
    # What a save that was cut short leaves behind.
    (folder / ".saving" / "checkpoint-6").mkdir(parents=True)
    (folder / ".saving" / "checkpoint-6" / "junk.bin").write_bytes(b"half")
    gpt.main(flags(folder))
    assert f"resuming from {folder / 'checkpoint-4'}" in capsys.readouterr().out
    assert_same_bits(folder, finished)
    assert losses(folder) == losses(finished)
    assert content(folder).keys() == content(finished).keys()
    changed = json.loads((folder / "metrics.json").read_text())
    assert changed["metrics"] == json.loads((finished / "metrics.json").read_text())["metrics"]


def test_the_last_evaluation_is_made_once(flags, tmp_path, monkeypatch, capsys):
    made, evaluate = [], recipe.RunTrainer.evaluate

    def count(self, *args, **kwargs):
        made.append(self.state.global_step)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(recipe.RunTrainer, "evaluate", count)
    once = gpt.main(flags(tmp_path / "once"))
    assert made == [STEPS]
    printed = capsys.readouterr().out
    assert "'eval_loss'" in printed and "'epoch'" not in printed
    again = gpt.main(flags(tmp_path / "again", "--eval_strategy", "no"))
    assert made == [STEPS, STEPS]
    assert again["metrics"] == once["metrics"]


def test_the_seed_makes_the_run(finished, flags, tmp_path):
    """Else the tests of equal bits would say nothing."""
    gpt.main(flags(tmp_path / "run", "--seed", "1"))
    a, b = load_file(finished / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert all(not torch.equal(a[name], b[name]) for name in a if "norm" not in name)


def test_a_run_that_was_stopped_while_it_reported(finished, flags, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(report, "write_card", stop)
        gpt.main(flags(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    gpt.main(flags(tmp_path / "run"))
    assert_same_bits(tmp_path / "run", finished)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_run_stopped_after_its_last_update_makes_no_other(flags, tmp_path, monkeypatch, capsys):
    constant = flags(tmp_path / "run", "--lr_scheduler_type", "constant")  # at the end, too
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(report, "write_card", Mock(side_effect=KeyboardInterrupt))
        gpt.main(constant)
    assert "the same command resumes" in capsys.readouterr().err
    gpt.main(constant)
    last = tmp_path / "run" / f"checkpoint-{STEPS}"
    final = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in load_file(last / "model.safetensors").items():
        assert torch.equal(final[name], tensor)
    assert not (tmp_path / "run" / f"checkpoint-{STEPS + 1}").exists()


def test_other_settings_are_not_mixed_with_an_unfinished_run(unfinished, flags, capsys):
    before = content(unfinished)
    words = ["learning_rate was 0.005, is 0.5", "--overwrite", "--output_dir"]
    assert_refused(capsys, flags(unfinished, "--learning_rate", "0.5"), *words)
    assert content(unfinished) == before


def test_how_often_it_logs_may_change(finished, unfinished, copy_of, flags):
    folder = copy_of(unfinished)
    gpt.main(flags(folder, "--logging_steps", "3", "--save_steps", "3", "--save_total_limit", "2"))
    assert_same_bits(folder, finished)
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}


def test_overwrite_starts_anew(finished, copy_of, flags, capsys):
    folder = copy_of(finished)
    gpt.main(flags(folder, "--overwrite", "--max_steps", "2", "--learning_rate", "0.001"))
    assert "resuming" not in capsys.readouterr().out
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-2"}
    assert json.loads((folder / "settings.json").read_text())["learning_rate"] == 0.001


def test_evaluate_only_gives_the_score_of_the_run(finished, flags):
    before = content(finished)
    again = gpt.main(flags(finished, "--evaluate_only"))
    run = json.loads((finished / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(run["metrics"], rel=1e-6)
    assert content(finished) == before


def test_a_finished_run_can_be_published(finished, flags, hub, capsys):
    """What a failed upload tells the user to do: the same command again."""
    publishing = flags(finished, "--push_to_hub", "--hub_model_id", "user/finished-run")
    assert_refused(capsys, flags(finished, "--push_to_hub"), "--hub_model_id user/name")
    with pytest.raises(SystemExit) as stopped:
        gpt.main(publishing)
    assert stopped.value.code == 0
    own = {name for name in content(finished) if not name.startswith("checkpoint-")}
    published = {name for name in hub.files("user/finished-run") if not name.startswith(".")}
    assert published == own - {"settings.json"}


def test_a_finished_run_is_not_taken_for_another(finished, flags, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("another text than before\n" * 500)
    before = content(finished)
    assert_refused(capsys, flags(finished, "--text", str(other)), "other settings", "--overwrite")
    assert content(finished) == before


def test_nothing_to_score_is_said_rather_than_looked_for_on_the_hub(
    flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # "runs/none" could be the name of a repository
    assert_refused(capsys, flags(Path("runs/none"), "--evaluate_only"), "no model to score")


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--max_steps=0", "--max_steps"),
        ("--load_best_model_at_end=true", "load_best_model_at_end"),
        ("--save_only_model=true", "save_only_model"),
        ("--initializer_range=-1", "initializer_range"),
        ("--report_to=wandb", "wandb"),
    ],
)
def test_what_cannot_be_honoured_is_refused(flags, tmp_path, flag, word, capsys):
    assert_refused(capsys, flags(tmp_path / "run", flag), word)


def test_runs_become_a_result_and_a_pretrained_model(finished, flags, tmp_path, monkeypatch):
    """`groundup.results --publish`, on a copy of the folders that it writes to."""
    config, text = flags(finished)[1], flags(finished)[3]
    for folder in ("results/benchmarks", "pretrained", "configs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(config, tmp_path / "configs")
    (tmp_path / "configs" / "tiny.yaml").open("a").write(f"text: {text}\n")
    bar = {"metric": "nats_per_character", "lower": True, "bar": 9, "unit": "nats", "anchor": "-"}
    bar["note"] = "It was read twice."
    (tmp_path / "results" / "bars.yaml").write_text(json.dumps({"tiny": bar}))
    ablations = {
        "metric": "nats",
        "setting": "1 s each",
        "commit": "ba9876543210",
        "rows": [{"variant": "v", "score": 1, "updates": 2}],
    }
    ablations_path = tmp_path / "results" / "benchmarks" / "tiny_ablations.json"
    ablations_path.write_text(json.dumps(ablations))
    study = ablations_path.with_name("tiny_depth.png")
    study.write_bytes(b"a picture")
    told = {"title": "Depth", "text": "Deeper.", "commit": "abcdefabcdef"}
    study.with_suffix(".json").write_text(json.dumps(told))
    for name, folder in (("ROOT", "."), ("RESULTS", "results"), ("PRETRAINED", "pretrained")):
        monkeypatch.setattr(results, name, tmp_path / folder)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    measured = json.loads((run / "metrics.json").read_text())
    measured |= {"commit": "0123456789ab", "command": "python train/gpt.py --seed 0"}
    (run / "metrics.json").write_text(json.dumps(measured))

    results.publish([run])
    model = tmp_path / "pretrained" / "tiny"
    assert load_file(model / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(model).dtype == torch.float32
    assert not list(model.glob("checkpoint-*")) and not (model / "settings.json").exists()
    result = json.loads((tmp_path / "results" / "tiny.json").read_text())
    score = "nats_per_character"
    assert result["pretrained"][score] == pytest.approx(measured["metrics"][score], abs=1e-3)
    stated = json.loads((model / "metrics.json").read_text())["metrics"]
    assert stated == result["pretrained"]
    card = (model / "README.md").read_text()
    assert "rounded to bf16" in card and "| v | 1.0000 | 2 |" in card
    assert "1 s each (commit ba9876543210):" in card
    [line] = [line for line in card.splitlines() if "scored again" in line]
    for name, value in result["pretrained"].items():
        assert f"{name} {value:.4f}" in line, name
    assert "(one seed)" in line and line.endswith(". It was read twice.")
    assert "## Depth\n\nDeeper. (Commit abcdefabcdef.)\n\n![Depth](figures/tiny_depth.png)" in card
    assert (model / "figures" / "tiny_depth.png").read_bytes() == b"a picture"
    assert "reached" not in results.table([result])
    assert results.verify("gpt")

    Path(text).with_name("moved.txt").write_text("other words, other score\n" * 400)
    other = (tmp_path / "configs" / "tiny.yaml").read_text().replace("toy.txt", "moved.txt")
    (tmp_path / "configs" / "tiny.yaml").write_text(other)
    with pytest.raises(ValueError, match="was scored on toy, but what is here is moved"):
        results.verify("gpt")


# ------------------------------------------------------------------------------ damaged checkpoints


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt(path: Path) -> None:
    """Of the right size, but not what it says it is."""
    path.write_bytes(b"\xff" * path.stat().st_size)


DAMAGES = {
    "truncated weights": (truncate, "model.safetensors"),
    "garbled weights": (corrupt, "model.safetensors"),
    "truncated optimiser": (truncate, "optimizer.pt"),
    "no optimiser": (Path.unlink, "optimizer.pt"),
    "no random state": (Path.unlink, "rng_state.pth"),
    "no manifest": (Path.unlink, "checkpoint.json"),
    "truncated manifest": (truncate, "checkpoint.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(unfinished, copy_of, capsys, damage):
    folder = copy_of(unfinished)
    assert recipe.find_checkpoint(folder) == folder / "checkpoint-4"
    assert capsys.readouterr().out == ""
    how, name = DAMAGES[damage]
    how(folder / "checkpoint-4" / name)
    assert recipe.find_checkpoint(folder) == folder / "checkpoint-2"
    (line,) = capsys.readouterr().out.splitlines()
    assert "checkpoint-4 is damaged" in line and "trying the one before it" in line


def test_a_run_goes_on_from_the_newest_whole_checkpoint(finished, unfinished, copy_of, flags):
    folder = copy_of(unfinished)
    truncate(folder / "checkpoint-4" / "model.safetensors")
    gpt.main(flags(folder))
    assert_same_bits(folder, finished)


def test_without_a_whole_checkpoint_it_starts_over(finished, unfinished, copy_of, flags, capsys):
    folder = copy_of(unfinished)
    for step in (2, 4):
        (folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    gpt.main(flags(folder))
    said = capsys.readouterr().out
    assert said.count("is damaged") == 2 and "starting from the beginning" in said
    assert_same_bits(folder, finished)


# -------------------------------------------------------------------------------- what users can do


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (["--hidden_size", "15"], ["hidden_size", "num_attention_heads", "15"]),
        (["--text", "no/such.txt"], ["no/such.txt does not exist"]),
        (["--text", "{short}"], ["give more text"]),
        (["--text", "{empty}"], ["empty.txt has no text"]),
        (["--tokenizer", "no/such"], ["no tokenizer at no/such", "give a folder", "characters"]),
        (["--tokenizer", "bpe"], ["vocab_size of at least"]),
        (["--learning_rat", "3"], ["did you mean --learning_rate?"]),
        (["--position_embedding_type", "rotry"], ["position_embedding_type", "rotary"]),
    ],
)
def test_a_mistake_is_one_line_and_costs_nothing(
    unfinished, flags, tmp_path, capsys, mistake, words
):
    """Even with --overwrite, an earlier run stays until the new one has begun."""
    files = {"short": tmp_path / "short.txt", "empty": tmp_path / "empty.txt"}
    files["short"].write_text("too short!")
    files["empty"].write_text("")
    mistake = [part.format_map(files) for part in mistake]
    before = content(unfinished)
    assert_refused(capsys, flags(unfinished, "--overwrite", *mistake), *words)
    assert content(unfinished) == before


def test_after_a_mistake_the_right_command_works(finished, flags, tmp_path, capsys):
    """The first attempt leaves nothing that the second would have to be like."""
    folder = tmp_path / "run"
    assert_refused(capsys, flags(folder, "--hidden_size", "15"), "hidden_size")
    with interrupted_at(1):  # and a run that has saved nothing yet can be changed
        gpt.main(flags(folder, "--hidden_size", "32"))
    gpt.main(flags(folder))
    assert_same_bits(folder, finished)


def test_a_folder_of_other_things_is_not_taken(flags, tmp_path, capsys):
    (tmp_path / "README.md").write_text("of another project")
    for more in ([], ["--overwrite"]):
        assert_refused(capsys, flags(tmp_path, *more), "holds files that are no run")
    assert content(tmp_path) == {"README.md": b"of another project"}


def test_an_unwritable_folder(flags, tmp_path, capsys):
    """Not by its permissions, which do not stop root."""
    (tmp_path / "file").write_text("no folder")
    words = ["cannot write to", "choose another --output_dir"]
    assert_refused(capsys, flags(tmp_path / "file" / "run"), *words)
    assert_refused(capsys, flags(tmp_path / "file"), *words)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_folder_where_nothing_can_be_made(flags, capsys):
    assert_refused(capsys, flags(Path("/proc/run")), "cannot write to", "--output_dir")


def test_evaluate_only_of_a_truncated_model(finished, copy_of, flags, capsys):
    folder = copy_of(finished)
    truncate(folder / "model.safetensors")
    before = content(folder)
    assert_refused(
        capsys, flags(folder, "--evaluate_only"), str(folder), "is damaged (model.safetensors"
    )
    assert content(folder) == before


def test_evaluate_only_without_a_model(flags, tmp_path, capsys):
    assert_refused(capsys, flags(tmp_path / "none", "--evaluate_only"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------ full disks

SAID_BY = {
    "Python": OSError(28, "No space left on device"),
    "safetensors": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "tokenizers": Exception("No space left on device (os error 28)"),
    "torch": RuntimeError("basic_ios::clear: iostream error"),
    "quota": OSError(122, "Disk quota exceeded"),
}
DISK_FULL = "error: disk full: free some space; the same command resumes"


@pytest.mark.parametrize("library", SAID_BY)
def test_a_full_disk_is_one_line_whoever_says_it(library, capsys):
    @recipe.one_line_errors
    def main(argv):
        try:
            raise SAID_BY[library]
        finally:
            raise RuntimeError("unexpected pos 576 vs 534")  # torch, when it closes the file

    with pytest.raises(SystemExit, match="2"):
        main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(DISK_FULL)


def test_an_error_of_ours_is_no_full_disk():
    @recipe.one_line_errors
    def main(argv):
        raise RuntimeError("a mistake in the code")

    with pytest.raises(RuntimeError, match="a mistake in the code"):
        main([])


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk, and this is not Linux's root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a model may be mapped yet


def fill(disk: Path, left: int) -> None:
    """Leaves so many bytes."""
    with (disk / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "filling", (disk / "filling").stat().st_size - left)


FULL_WHEN = {
    "a checkpoint": (recipe.Trainer, "_save_checkpoint"),
    "a checkpoint's optimiser": (recipe.Trainer, "_save_optimizer_and_scheduler"),
    "the final model": (report, "save_model"),
    "the card": (report, "write_card"),
}


@pytest.mark.parametrize("what", FULL_WHEN)
def test_a_full_disk(finished, flags, disk, monkeypatch, capsys, what):
    """What was saved stays; with space again, the same command ends with the same bits."""
    owner, name = FULL_WHEN[what]
    saved = getattr(owner, name)
    calls = []

    def save(*args, **kwargs):
        calls.append(name)
        if len(calls) == 2 or owner is report:  # the second checkpoint
            fill(disk, left=0 if name == "write_card" else 4096)
        return saved(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, save)
        with pytest.raises(SystemExit, match="2"):
            gpt.main(flags(disk / "run"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(DISK_FULL)
    left = {path.name for path in (disk / "run").iterdir()}
    whole = STEPS if owner is report else 2
    assert recipe.find_checkpoint(disk / "run") == disk / "run" / f"checkpoint-{whole}"
    assert "metrics.json" not in left and not {".saving", ".README.md.partial"} & left

    (disk / "filling").unlink()
    gpt.main(flags(disk / "run"))
    assert f"resuming from {disk / 'run' / f'checkpoint-{whole}'}" in capsys.readouterr().out
    assert_same_bits(disk / "run", finished)


def test_a_read_only_folder(finished, flags, disk, capsys):
    """A new run is refused; a finished one can be scored."""
    shutil.copytree(finished, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    words = ["cannot write to", "Read-only", "choose another --output_dir"]
    for folder in ("new", "run"):
        assert_refused(capsys, flags(disk / folder), *words)
    gpt.main(flags(disk / "run", "--evaluate_only"))


# ------------------------------------------------------------------------------------ mathematics


@pytest.fixture
def blocks_taken(monkeypatch):
    """The numbers of the training blocks that were taken, in order."""
    taken = []
    getitems = TokenBlocks.__getitems__

    def record(self, indices):
        if self.stride == 1:  # evaluation has another
            taken.extend(indices)
        return getitems(self, indices)

    monkeypatch.setattr(TokenBlocks, "__getitems__", record)
    return taken


NO_DROPOUT = ("--hidden_dropout", "0", "--attention_dropout", "0")


def test_accumulated_batches_are_one_batch(flags, tmp_path, blocks_taken):
    """2 x 4 = 8. With AdamW alone: Muon in bf16 enlarges rounding."""
    results, orders = [], []
    for batch, accumulate in ((8, 1), (2, 4)):
        sizes = [f"--per_device_train_batch_size={batch}"]
        sizes += [f"--gradient_accumulation_steps={accumulate}", "--muon_learning_rate=0"]
        folder = tmp_path / f"run-{batch}"
        results.append((gpt.main(flags(folder, *NO_DROPOUT, *sizes)), losses(folder)))
        orders.append(blocks_taken[: 8 * STEPS])
        blocks_taken.clear()
    (one, one_losses), (other, other_losses) = results
    assert orders[0] == orders[1]
    assert other_losses == pytest.approx(one_losses, abs=1e-5)
    assert other["metrics"] == pytest.approx(one["metrics"], abs=1e-5)


def test_threads_are_shared_between_the_processes_of_a_machine(monkeypatch):
    """On a machine of four cores, wherever this one has fewer or OMP_NUM_THREADS is set."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        for processes, threads in ((1, 4), (2, 2), (8, 1)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
            machine.set_threads()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------------------------- launchers

LAUNCHERS = recipe.CONFIGS / "accelerate"
KINDS = {
    "ddp": {"distributed_type": "MULTI_GPU", "num_machines": 1},
    "fsdp": {"distributed_type": "FSDP", "num_machines": 1},
    "multi_node": {"distributed_type": "MULTI_GPU", "num_machines": 2, "machine_rank": 0},
}


def test_all_launcher_configs_are_known():
    assert {path.stem for path in LAUNCHERS.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_launcher_config_is_understood(name):
    """By accelerate, which passes over a wrong key of `fsdp_config` without a word."""
    path = LAUNCHERS / f"{name}.yaml"
    config = load_config_from_file(str(path)).to_dict()
    assert config.items() >= KINDS[name].items()
    assert config["num_processes"] >= 2
    flags = vars(launch_command_parser().parse_args(["train/gpt.py"]))
    assert set(config.get("fsdp_config", ())) <= set(flags)
    assert f"--config_file configs/accelerate/{name}.yaml" in path.read_text()


def test_sharded_checkpoints_are_whole_files():
    """`seal` and `find_checkpoint` look at files, not at the folders of SHARDED_STATE_DICT."""
    fsdp = load_config_from_file(str(LAUNCHERS / "fsdp.yaml")).fsdp_config
    assert fsdp["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert fsdp["fsdp_version"] == 2


def test_fsdp_without_gpus_says_that_it_is_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe.RunArguments(output_dir=str(tmp_path), use_cpu=True)
    assert "FSDP is for GPUs" in capsys.readouterr().out


# -------------------------------------------------------------------- processes of their own: slow

# Python runs this at the start of every process that has its folder on PYTHONPATH. So the scripts
# stay as they are, and tell about themselves when they end.
WITNESS = """
import atexit, json, os, sys

RUN, HERE = os.environ["WITNESS_RUN"], os.path.dirname(__file__)
written, taken = set(), []

def watch(event, args):
    writes = event == "open" and args[1] and set(args[1]) & set("wax+")
    if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        for path in args[:2] if event == "os.rename" else args[:1]:
            if str(path).startswith(RUN):
                written.add(os.path.relpath(str(path), RUN))

sys.addaudithook(watch)

def tell():
    if "groundup.train.recipe" not in sys.modules:
        return
    import accelerate, torch
    state = accelerate.PartialState()
    found = {
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "processes": state.num_processes,
        "written": sorted(written),
    }
    rank = os.environ.get("RANK", "0")
    with open(os.path.join(HERE, f"witness-{rank}.json"), "w") as file:
        json.dump(found, file)

atexit.register(tell)
"""


def launch(
    launcher: list[str], arguments: list[str], run: Path, scratch: Path, script="gpt.py", **env
) -> list:
    """Starts a script of train/; when it has ended well, what each process tells about itself."""
    (scratch / "sitecustomize.py").write_text(WITNESS)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(scratch), "WITNESS_RUN": str(run), **env}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(ROOT / "train" / script), *arguments],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_text()) for path in sorted(scratch.glob("witness-*.json"))]


@pytest.fixture(scope="module")
def launched(flags, tmp_path_factory):
    """Three updates by `accelerate launch -q`: (what it tells about itself, its folder)."""
    scratch = tmp_path_factory.mktemp("launched")
    run = scratch / "run"
    accelerate = ["accelerate.commands.launch", "-q"]
    more = ["--max_steps", "3", "--hub_token", "hf_secret", "--hub_model_id=user/name"]
    told = launch(accelerate, flags(run, *more), run, scratch)
    return told, run


def test_launched_by_accelerate(launched, finished):
    (told,), run = launched
    assert told["omp"] == "1"  # which is what the launcher does, and what is made good for
    assert told["threads"] == machine.cores()
    ours, theirs = content(run), content(finished)
    assert {name for name in ours if not name.startswith("checkpoint-")} == {
        name for name in theirs if not name.startswith("checkpoint-")
    }
    beside = {path.name for path in run.parent.iterdir()}
    assert beside - {"__pycache__"} == {"run", "sitecustomize.py", "witness-0.json"}


def test_nothing_published_names_a_folder_of_this_machine(launched):
    """The command had absolute paths, of the text, the config and the run."""
    _, run = launched
    command = json.loads((run / "metrics.json").read_text())["command"]
    assert command.startswith("accelerate launch -q train/gpt.py ")
    assert "--max_steps 3" in command
    for name, data in content(run).items():
        if not name.startswith("checkpoint-") and name != "settings.json":
            assert str(run.parent.parent).encode() not in data, name
            assert str(Path.home()).encode() + b"/" not in data, name


def test_the_token_is_written_nowhere(launched):
    _, run = launched
    assert [name for name, data in content(run).items() if b"hf_secret" in data] == []


def test_a_killed_run_ends_with_the_same_bits(flags, tmp_path):
    """kill -9 when the second checkpoint stands, then the same command again."""
    more = ["--max_steps", "40", "--save_steps", "5", "--eval_steps", "40"]
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = subprocess.Popen(
        [sys.executable, "-m", "groundup.train.gpt", *flags(killed, *more)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not (killed / "checkpoint-10").exists():
        assert process.poll() is None and time.monotonic() < until, "there is no checkpoint-10"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "checkpoint-40").exists(), "killed too late to tell anything"

    gpt.main(flags(killed, *more))
    gpt.main(flags(straight, *more))
    assert_same_bits(killed, straight, step=40)


def test_two_processes_train_as_one(finished, flags, tmp_path):
    """Half the batch each: the same blocks, the same loss; one of them writes. Costs 15 s.

    It starts over what an earlier run has left, which one process must clear away before the
    other looks.
    """
    scratch = tmp_path / "two"
    scratch.mkdir()
    two, one, half = scratch / "run", tmp_path / "one", tmp_path / "half"
    shutil.copytree(finished, two)
    half_batch = "--per_device_train_batch_size=4"
    told = launch(
        ["accelerate.commands.launch", "-q", "--config_file", str(LAUNCHERS / "ddp.yaml")],
        flags(two, *NO_DROPOUT, "--overwrite", half_batch, "--use_cpu=true"),
        two,
        scratch,
    )
    assert [process["processes"] for process in told] == [2, 2]
    assert [process["threads"] for process in told] == [max(1, machine.cores() // 2)] * 2
    # Of the second: folders that it makes sure of; its random state, torch writes unseen.
    folders = {".", ".saving", *(f".saving/checkpoint-{step}" for step in (2, 4, 6))}
    assert set(told[1]["written"]) <= {".writable", *folders}
    assert {"metrics.json", "README.md"} <= set(told[0]["written"])
    states = {path.name for path in two.glob("checkpoint-6/rng_state*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}

    expected = gpt.main(flags(one, *NO_DROPOUT))
    found = json.loads((two / "metrics.json").read_text())
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    gpt.main(flags(half, *NO_DROPOUT, half_batch))  # what two independent processes would show
    assert losses(half) != pytest.approx(losses(one), abs=1e-3)
