"""Fine-tuning: LoRA beside all weights, characters that are new, and what a run leaves behind.

A tiny GPT that has read one text goes on with another, which has characters of its own.
"""

import json
import shutil
from unittest.mock import Mock

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from test_recipe import TINY, assert_refused, interrupted_at, toy_text
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2Config

from groundup.data_scripts.tokenization import add_characters, train_tokenizer
from groundup.models.gpt import GPTForCausalLM
from groundup.train import gpt
from groundup.train.adapters import FineTuneArguments, check_base_model, check_sharding

NEW = '"?é'
RANK = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained model."""
    files = tmp_path_factory.mktemp("base")
    (files / "toy.txt").write_text(toy_text())
    (files / "base.yaml").write_text(TINY)
    config, text = str(files / "base.yaml"), str(files / "toy.txt")
    run = ["--output_dir", str(files / "run"), "--max_steps=60"]
    gpt.main(["--config", config, "--text", text, *run])
    return files / "run"


@pytest.fixture(scope="module")
def flags(base, tmp_path_factory):
    """`flags(folder, *more)`: the flags of a run that goes on from `base` with another text."""
    files = tmp_path_factory.mktemp("files")
    (files / "new.txt").write_text(toy_text().replace("king", '"queen"?').replace("the", "thé"))
    lines = [line for line in TINY.splitlines() if "dropout" in line or "_steps" in line]
    more = [f"base_model: {base}", "attn_implementation: eager", "learning_rate: 0.05"]
    (files / "tune.yaml").write_text("\n".join([*lines, *more, "disable_tqdm: true"]))
    config, text = str(files / "tune.yaml"), str(files / "new.txt")

    def make(folder, *more):
        return ["--config", config, "--text", text, "--output_dir", str(folder), *more]

    return make


@pytest.fixture(scope="module")
def tuned(flags, tmp_path_factory):
    """The folder of a whole LoRA run. Only to be read."""
    folder = tmp_path_factory.mktemp("tuned")
    gpt.main(flags(folder, f"--lora_rank={RANK}", "--max_steps=60", "--save_steps=60"))
    return folder


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_characters_that_are_new_get_tokens_at_the_end():
    tokenizer = train_tokenizer("characters", "abc\n")
    before = len(tokenizer)
    added = add_characters(tokenizer, ['a "b"', "é\tc"])
    assert added == list(range(before, len(tokenizer)))
    text = '"b"\té c\n'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert add_characters(tokenizer, [text]) == []


def test_a_tokenizer_over_bytes_knows_all_characters():
    tokenizer = train_tokenizer("bpe", toy_text(), 300)
    assert add_characters(tokenizer, [NEW]) == []


def test_the_loss_falls_and_few_parameters_are_trained(base, tuned):
    metrics = json.loads((tuned / "metrics.json").read_text())["metrics"]
    assert metrics["nats_per_character"] < metrics["nats_per_character_before"] - 0.1
    width, rows = 16, len(NEW)
    attention, mlp = 4 * 2 * width, 2 * (width + 4 * width)
    assert metrics["trained_parameters"] == RANK * (attention + mlp) + rows * width


def test_only_changes_of_low_rank_are_made(base, tuned):
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    assert old.keys() == new.keys()
    changed = set()
    for name, weight in old.items():
        difference = new[name][: len(weight)] - weight
        if difference.abs().max() > 0:
            changed.add(name)
            assert torch.linalg.matrix_rank(difference, atol=1e-5) <= RANK, name
    assert changed == {name for name in old if name.endswith("_proj.weight")}


def test_the_adapter_alone_gives_the_same_model(base, tuned, monkeypatch):
    """Loaded by PEFT onto the base model; what it publishes names no folder of this machine."""
    settings = json.loads((tuned / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base.name
    monkeypatch.chdir(base.parent)
    adapted = AutoPeftModelForCausalLM.from_pretrained(tuned / "adapter", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tuned)('king "sings"? é', return_tensors="pt").input_ids
    merged = load(tuned)
    assert type(merged) is GPTForCausalLM
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_card_says_where_it_comes_from(base, tuned):
    card = (tuned / "README.md").read_text()
    assert f"It began as `{base.name}`" in card and f"LoRA of rank {RANK}" in card
    assert str(base) not in card
    assert not list(tuned.rglob("*.bin"))


@pytest.mark.parametrize("rank", [0, RANK])
def test_a_stopped_run_ends_with_the_same_bits(rank, flags, tmp_path):
    rank_flag = f"--lora_rank={rank}"
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    gpt.main(flags(straight, rank_flag))
    with interrupted_at(5):
        gpt.main(flags(stopped, rank_flag))
    assert (stopped / "checkpoint-4").is_dir()
    gpt.main(flags(stopped, rank_flag))
    for name in ("model.safetensors", *(["adapter/adapter_model.safetensors"] if rank else [])):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes(), name


def test_in_full_all_weights_change(base, flags, tmp_path):
    gpt.main(flags(tmp_path))
    assert not (tmp_path / "adapter").exists()
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path))
    unchanged = {name for name, w in old.items() if torch.equal(w, new[name][: len(w)])}
    assert unchanged == set()
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics["trained_parameters"] == sum(weight.numel() for weight in new.values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lora_rank=-1"], ["lora_rank is -1"]),
        (["--base_model=no/where"], ["no model at no/where"]),
        (["--hidden_size=32"], ["hidden_size is 16", "cannot become 32"]),
        (["--no_tie_word_embeddings"], ["tie_word_embeddings is True", "cannot become False"]),
        # Before any text is read, of which there is none.
        (["--hidden_size=32", "--text=no/where"], ["cannot become 32"]),
        (["--position_embedding_type=rotary"], ["position_embedding_type is learned"]),
        (["--tokenizer=bpe"], ["leave out --tokenizer"]),
        (["--lora_rank=2", "--muon_learning_rate=0.02"], ["--muon_learning_rate 0"]),
    ],
)
def test_a_mistake_is_one_line(capsys, flags, tmp_path, more, words):
    assert_refused(capsys, flags(tmp_path, *more), *words)


def test_a_base_of_another_kind_is_one_line(capsys, flags, tmp_path):
    GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(tmp_path / "gpt2")
    arguments = flags(tmp_path / "run", f"--base_model={tmp_path / 'gpt2'}")
    assert_refused(capsys, arguments, "holds a gpt2 without a head", "needs a GPTForCausalLM")


def test_a_base_without_a_head_is_one_line(base, capsys, flags, tmp_path):
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "headless")
    arguments = flags(tmp_path / "run", f"--base_model={tmp_path / 'headless'}")
    assert_refused(capsys, arguments, "holds a GPTModel", "needs a GPTForCausalLM")


def test_a_tuned_model_is_scored_without_its_base(tuned, flags):
    again = gpt.main(flags(tuned, "--base_model=no/where", "--evaluate_only"))
    told = json.loads((tuned / "metrics.json").read_text())
    key = "nats_per_character"
    assert again["metrics"][key] == pytest.approx(told["metrics"][key], abs=1e-6)


def test_another_model_of_the_same_name_is_another_base(base, tmp_path):
    def told(folder):
        return check_base_model(str(folder), GPTForCausalLM, gpt.ModelArguments(), set())

    shutil.copytree(base, tmp_path / "base")
    before = told(tmp_path / "base")
    assert before == told(base)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.bias"] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors")
    assert told(tmp_path / "base") != before


def test_lora_is_refused_under_fsdp():
    tune_args = FineTuneArguments(base_model="any", lora_rank=2)
    with pytest.raises(ValueError, match="LoRA does not go with FSDP"):
        check_sharding(tune_args, Mock(is_fsdp_enabled=True))
    check_sharding(tune_args, Mock(is_fsdp_enabled=False))
    check_sharding(FineTuneArguments(base_model="any"), Mock(is_fsdp_enabled=True))


def test_lora_needs_a_base_model(capsys, tmp_path):
    assert_refused(capsys, ["--lora_rank=4", f"--output_dir={tmp_path}"], "--base_model")


def test_an_unknown_dataset_is_one_line(capsys, tmp_path):
    assert_refused(
        capsys, ["--dataset=homer", f"--output_dir={tmp_path}"], "shakespeare or dickens"
    )


def test_a_lora_run_is_published_with_its_adapter(base, tuned, flags, hub, tmp_path):
    """And both are loaded from the Hub: the model that has it in, and the adapter onto its base."""
    folder = shutil.copytree(tuned, tmp_path / "run")
    more = [
        f"--lora_rank={RANK}",
        "--max_steps=60",
        "--push_to_hub=true",
        "--hub_model_id=user/lora",
    ]
    with pytest.raises(SystemExit, match="0"):  # finished already: it is only published
        gpt.main(flags(folder, *more))
    files = hub.files("user/lora")
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    tokenizer = AutoTokenizer.from_pretrained("user/lora")
    model = load(base)
    model.resize_token_embeddings(len(tokenizer))
    adapted = PeftModel.from_pretrained(model, "user/lora", subfolder="adapter")
    ids = tokenizer('king "sings"? é', return_tensors="pt").input_ids
    torch.testing.assert_close(
        adapted(ids).logits, load("user/lora")(ids).logits, rtol=1e-4, atol=1e-4
    )
