"""Fine-tuning: a trained model goes on with another text, in full or by LoRA.

LoRA (Hu et al. 2021, "Low-Rank Adaptation of Large Language Models") leaves each weight W as it is
and learns a small change beside it, W + (alpha / r) B A, where A is (r, in) and B is (out, r). PEFT
does the wrapping; what is here says where, how large, and what becomes of it.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from groundup.train.recipe import put_in_place

# What may differ from a base model's own.
CHANGEABLE = {"hidden_dropout", "attention_dropout", "attn_implementation"}


@dataclass
class FineTuneArguments:
    """What training starts from, and how much of it is trained."""

    base_model: str | None = field(
        default=None,
        metadata={"help": "Start from this trained model, a folder or a Hub name (default: anew)."},
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Rank of the changes that LoRA learns; 0 trains all of base_model."},
    )

    def __post_init__(self):
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be 0 (off) or more")
        if self.lora_rank and self.base_model is None:
            raise ValueError("--lora_rank changes a trained model: name it with --base_model")


def check_optimizer(tune_args, args) -> None:
    """Raises ValueError where Muon, which is for whole matrices, would train LoRA's factors."""
    if tune_args.lora_rank and args.muon_learning_rate:
        raise ValueError(
            "LoRA's factors are trained by AdamW: set --muon_learning_rate 0 and a --learning_rate "
            "of about 0.005, as in configs/gpt_dickens.yaml"
        )


def check_sharding(tune_args, trainer) -> None:
    """Raises ValueError where FSDP would spread a model with LoRA over the processes."""
    if tune_args.lora_rank and trainer.is_fsdp_enabled:
        raise ValueError("LoRA does not go with FSDP: take configs/accelerate/ddp.yaml")


def config_of(name: str | Path, model_class):
    """The config of a trained model, from a folder or the Hub.

    Raises:
        ValueError: there is no model, or one of another class, or without a head.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {name}: give a folder or Hub name that holds one") from error
    found = (config.architectures or [f"{config.model_type} without a head"])[0]
    if not isinstance(config, model_class.config_class) or found != model_class.__name__:
        raise ValueError(
            f"{name} holds a {found}, and this task needs a {model_class.__name__}: name another, "
            f"or the --config or --task that it was trained with"
        )
    return config


def check_base_model(name: str, model_class, model_args, chosen: set[str]) -> str:
    """Judges a base model by its config, before any data is read.

    Args:
        name: a folder, or a name on the Hub.
        chosen: names of the arguments that the user gave, rather than a default config.

    Returns:
        What tells it from a later one of the same name, for the settings of a run: SHA-256 of a
        folder's weights, 16 digits, or the commit on the Hub.

    Raises:
        ValueError: there is no model, or one of another class or shape than the arguments ask for.
    """
    config, given = config_of(name, model_class), asdict(model_args)
    for option in sorted(chosen & set(given) - CHANGEABLE):
        asked, has = given[option], getattr(config, option, None)
        if asked != has:
            raise ValueError(f"{option} is {has} in {name} and cannot become {asked}: leave it out")
    if not Path(name).is_dir():
        return config._commit_hash
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def load_base_model(name: str, model_args, auto_class=AutoModelForCausalLM, **options):
    """A trained model, from a folder or the Hub, of its own shape (see `check_base_model`).

    Args:
        model_args: of them it takes what is in `CHANGEABLE`.
        auto_class: of the task; a head that the trained model does not have is a new one.
        options: for its config, such as the names of classes.
    """
    given = asdict(model_args)
    changed = {key: given[key] for key in CHANGEABLE}
    return auto_class.from_pretrained(name, dtype=torch.float32, **changed, **options)


def add_lora(
    model,
    rank: int,
    new_tokens: Sequence[int] = (),
    task_type: str = "CAUSAL_LM",
    new_modules: list[str] | None = None,
) -> PeftModel:
    """LoRA on every linear map but the output layer; the embedding's rows of new tokens in full.

    What the base model does not have is trained in full, too, and kept with the adapter.

    Args:
        rank: r. The scale alpha is 2 r, so that a rank needs no learning rate of its own.
        new_tokens: ids that the base model has not seen; a change of rank r to rows that mean
            nothing yet would be of no use.
        task_type: PEFT's name of the task.
        new_modules: names of the modules that the base model does not have.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": list(new_tokens)} if new_tokens else None,
        task_type=task_type,
        modules_to_save=new_modules,
    )
    return get_peft_model(model, config)


def save_adapter(model: PeftModel, tokenizer, output_dir: Path) -> None:
    """Writes `adapter/`: what was learned, without the base model, for PEFT.

    The tokenizer lies beside it, from which `AutoPeftModel` knows the size of the vocabulary.
    """
    base = Path(model.name_or_path)
    if base.is_absolute():  # what is published names no folder of this machine
        model.peft_config["default"].base_model_name_or_path = base.name
    staging = output_dir / ".saving_adapter"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging, save_embedding_layers=False)  # its new rows are in any case
    (staging / "README.md").unlink()  # PEFT's empty card; the run's own says it all
    tokenizer.save_pretrained(staging)
    put_in_place(staging, output_dir / "adapter")
