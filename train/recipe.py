"""What every training script shares: arguments, the run's folder, Trainer, report.

A run is one folder, `runs/<config>/`. While it trains, the folder holds checkpoints, each whole or
absent; the same command again resumes from the newest. When it is done, the folder is a model that
`from_pretrained` loads anywhere, and `metrics.json` (written last) says so.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import os
import re
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError, safe_open
from transformers import (
    HfArgumentParser,
    PreTrainedConfig,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from groundup.data_scripts.images import EpochSampler
from groundup.data_scripts.pairs import LengthSampler
from groundup.train import machine
from groundup.train.muon import Muon
from groundup.train.publishing import publish

CONFIGS = Path(__file__).parent.parent / "configs"
# Flags that may change between a run and its resumption: how often it logs, evaluates, saves, what
# it is asked for samples, where it is published.
FREE = re.compile(
    r"^(log(ging)?_|eval|save|hub|push|publish|report|run_name|disable_tqdm|overwrite|output_dir"
    r"|prompt|data_dir|project|trackio|include_|debug|use_cpu|resume|ddp_"
    r"|dataloader_(num|pin|pers|pre)|local)"
)
MANIFEST = "checkpoint.json"  # what a checkpoint holds; without it, it is not one

# ------------------------------------------------------------------------------------- arguments


@dataclass
class RunArguments(TrainingArguments):
    """transformers' `TrainingArguments` with what this project adds."""

    overwrite: bool = field(
        default=False, metadata={"help": "Start anew where the folder holds a run already."}
    )
    evaluate_only: bool = field(
        default=False, metadata={"help": "Score the model in output_dir, train nothing."}
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Train the hidden matrices with Muon at this rate (learning_rate is for the "
            "rest). 0: AdamW trains all."
        },
    )

    muon_momentum: float = field(
        default=0.95, metadata={"help": "Muon's momentum; short runs want less."}
    )
    use_cache: bool = True  # what Trainer writes into a config; saved models generate with a cache

    def __post_init__(self):
        for name in ("load_best_model_at_end", "resume_from_checkpoint", "save_only_model"):
            if getattr(self, name):
                raise ValueError(
                    f"--{name} is not for this project: a run ends with its last weights, "
                    f"and resumes by itself from its newest whole checkpoint"
                )
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("--push_to_hub needs to know where to: --hub_model_id user/name")
        # Publishing is `publishing.publish`: one commit of a whole folder, rather than Trainer's.
        self.publish, self.push_to_hub = self.push_to_hub, False
        self._check_counts()
        self.settings = None  # `prepare_folder` fills this in, `begin` writes it down
        self.default_settings = {}  # `settings_of` fills this in
        self.chosen = set()  # flags that the user gave, or the config that the user named
        # Trainer allows bf16 on a CPU only where it is told that the CPU is meant.
        self.use_cpu = (
            self.use_cpu
            or parse_flag_from_env("ACCELERATE_USE_CPU")
            or not torch.accelerator.is_available()
        )
        # A run may go on on another machine: its settings are what was asked for.
        self.asked = {name: getattr(self, name) for name in ("bf16", "bf16_full_eval")}
        super().__post_init__()
        self._choose_precision()
        if self.use_cpu and os.environ.get("ACCELERATE_USE_FSDP") and self.process_index == 0:
            print("FSDP is for GPUs: on this CPU each process has the whole model, as with DDP")

    def _choose_precision(self):
        """Has a CPU without a kernel for bf16 compute in fp32, a hundred times as fast there."""
        # Trainer hands on `mixed_precision`, which may also come from `accelerate launch`.
        asked = self.mixed_precision == "bf16" or self.bf16_full_eval
        if asked and self.use_cpu and not machine.has_bf16_kernel("cpu"):
            self.bf16, self.bf16_full_eval, self.mixed_precision = False, False, "no"
            if self.process_index == 0:
                print("this CPU is slow in bf16: the run is in fp32")
        self.precision = "fp32" if self.mixed_precision == "no" else self.mixed_precision

    def _check_counts(self):
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise ValueError("a run of no updates trains nothing: set --max_steps to at least 1")
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*sizes, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "muon_learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("save_steps", "eval_steps", "logging_steps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                never = f"--{name.replace('steps', 'strategy')} no"
                raise ValueError(f"--{name} is {getattr(self, name):g}; give 1 or more, or {never}")


# The few of TrainingArguments' 120 fields that `--help` shows; all of them are flags.
SHOWN = {
    "output_dir": "Folder of the run (default: runs/<name of the config>).",
    "max_steps": "How many updates; -1: num_train_epochs passes.",
    "num_train_epochs": "Passes over the data, where max_steps is -1.",
    "learning_rate": "The highest rate, after warm-up.",
    "lr_scheduler_type": "Shape of the rate after warm-up: cosine, linear, constant, ...",
    "warmup_steps": "Updates (or, below 1, the share of them) until the rate is at its highest.",
    "weight_decay": "Decoupled weight decay; not for norms, biases (Muon: hidden matrices, a "
    "classifier).",
    "max_grad_norm": "Longer gradients are clipped to this.",
    "per_device_train_batch_size": "Examples per process and step.",
    "gradient_accumulation_steps": "Steps that share one update.",
    "gradient_checkpointing": "Recompute activations in the backward pass, to save memory.",
    "bf16": "Mixed precision in bfloat16; fp32 on a CPU that has no kernel for it.",
    "seed": "For weights, order and dropout.",
    "logging_steps": "Updates between two lines of the log.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "eval_steps": "Updates between two evaluations; sets eval_strategy to steps.",
    "save_steps": "Updates between two checkpoints; sets save_strategy to steps.",
    "report_to": "Also log to: tensorboard, trackio, wandb, ...",
    "push_to_hub": "Publish the finished run.",
    "hub_model_id": "Where to: user/name.",
}


def model_arguments(config_class, leave_out=()):
    """A dataclass of a model config's own fields, so that each of them is a flag.

    Its help comes from the `Args:` of the config's docstring. Token ids and the vocabulary come
    from the tokenizer and are no flags.
    """
    helps = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", config_class.__doc__ or "", re.M))
    fields = []
    for name, kind in config_class.__annotations__.items():
        if name.endswith(("_token_id", "_token_ids")) or name in ("use_cache", *leave_out):
            continue
        text = " ".join(helps.get(name, "").split()).replace("%", "%%")
        default = {"default": getattr(config_class, name)}
        if isinstance(default["default"], tuple):  # HfArgumentParser asks a list's factory only
            default = {"default_factory": functools.partial(list, default["default"])}
        fields.append((name, kind, field(**default, metadata={"help": text})))
    if hasattr(config_class, "num_attention_heads"):
        kernel = {"help": "How attention is computed: eager or sdpa."}
        fields.append(("attn_implementation", str, field(default="sdpa", metadata=kernel)))
    return dataclasses.make_dataclass(f"{config_class.__name__}Arguments", fields)


def load_trained(auto_class, folder: Path, model_args):
    """A finished model, to be scored as it was: in fp32, with the kernel that `model_args` name.

    The kernel is no part of a saved model, and another one gives slightly other scores in bf16.
    """
    kernel = getattr(model_args, "attn_implementation", None)  # a recurrent network has none
    return auto_class.from_pretrained(folder, dtype=torch.float32, attn_implementation=kernel)


class OnePage(argparse.HelpFormatter):
    """Help with one line per flag where it fits, and the default where there is one."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action):
        absent = action.default is None or action.default is argparse.SUPPRESS
        whole = isinstance(action.default, float) and action.default.is_integer()
        default = "" if absent else str(int(action.default) if whole else action.default).strip()
        return action.help + (f" (default: {default.replace('%', '%%')})" if default else "")


class Parser(HfArgumentParser):
    """Flags from dataclasses, with a YAML file below them and a `--help` of one page."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(
            dataclass_types,
            allow_abbrev=False,
            formatter_class=OnePage,
            usage="%(prog)s [--config FILE] [--flag value] ...",
            **kwargs,
        )
        shown = set(SHOWN)
        for kind in dataclass_types:
            if kind is not RunArguments:
                shown |= {f.name for f in dataclasses.fields(kind)}
        shown |= set(RunArguments.__annotations__) | {"help", "config"}
        shown.remove("use_cache")  # no choice: it only undoes Trainer's own default
        for action in self._actions:
            if action.dest not in shown or action.option_strings[0].startswith("--no_"):
                action.help = argparse.SUPPRESS
            elif action.dest in SHOWN:
                action.help = SHOWN[action.dest]
            # `--max-steps` works as well as `--max_steps`; the help need not say everything twice.
            action.option_strings = action.option_strings[:1]
            if action.nargs != 0:
                action.metavar = {int: "N", float: "X"}.get(action.type, "...")

    def parse(self, argv: list[str], default_config: str):
        """The dataclasses, filled: a flag beats the YAML file, which beats the default.

        The file is turned into flags, so that it is read, typed and checked as the user's are;
        what it gives are then the defaults, also those that `--help` shows.
        """
        argv = [re.sub(r"^(--)([\w-]+)", lambda m: m[1] + m[2].replace("-", "_"), a) for a in argv]
        config = self._config_of(argv) or CONFIGS / f"{default_config}.yaml"
        flags = self._flags_of(config)
        try:
            of_file = self.parse_args(flags)
        except ValueError as error:
            raise ValueError(f"{config}: {error}") from error
        self._turn_on(of_file, flags)
        self.set_defaults(**vars(of_file))
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse(unknown[0].split("=")[0], "flag", "--")
        if namespace.output_dir is None:
            namespace.output_dir = str(Path("runs") / config.stem)
        self._turn_on(namespace, argv)
        filled = []
        for kind in self.dataclass_types:
            names = {f.name for f in dataclasses.fields(kind) if f.init}
            filled.append(kind(**{k: v for k, v in vars(namespace).items() if k in names}))
        filled[-1].chosen = self._given(argv + (flags if self._config_of(argv) else []))
        return (config.stem, *filled)

    def _turn_on(self, namespace, argv: list[str]) -> None:
        """Whoever says how often to save or to evaluate, and not when, wants it so."""
        given = self._given(argv)
        for what in ("save", "eval"):
            if f"{what}_steps" in given and f"{what}_strategy" not in given:
                setattr(namespace, f"{what}_strategy", "steps")

    def _given(self, argv: list[str]) -> set[str]:
        """The names of what the flags among some arguments set; `--no_x` sets x."""
        actions, flags = self._option_string_actions, (a.partition("=")[0] for a in argv)
        return {actions[flag].dest for flag in flags if flag in actions}

    @staticmethod
    def _config_of(argv: list[str]) -> Path | None:
        """What `--config X` or `--config=X` names."""
        only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        only.add_argument("--config", type=Path)
        try:
            return only.parse_known_args(argv)[0].config
        except argparse.ArgumentError as error:
            raise ValueError("--config needs the path of a YAML file") from error

    def _flags_of(self, path: Path) -> list[str]:
        if not path.is_file():
            have = sorted(p.name for p in CONFIGS.glob("*.yaml"))
            near = difflib.get_close_matches(path.name, have, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(have)}"
            raise ValueError(f"there is no config {path}; in {CONFIGS}, {hint}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold lines of `key: value`")
        flags = []
        for key, value in values.items():
            if key not in self._names():
                self._refuse(str(key), f"key in {path}", more="is the file for another script?")
            if isinstance(value, list):
                flags += [f"--{key}", *map(str, value)]
            elif value is not None:
                text = json.dumps(value) if isinstance(value, dict | bool) else str(value)
                flags.append(f"--{key}={text}")
        return flags

    def error(self, message):
        """One line, like every other error; argparse would print the usage before it."""
        raise ValueError(message)

    def _names(self) -> list[str]:
        return [f.name for kind in self.dataclass_types for f in dataclasses.fields(kind)]

    def _refuse(self, name: str, what: str, prefix="", more="--help lists what there is"):
        near = difflib.get_close_matches(name.lstrip("-"), self._names(), n=1, cutoff=0.76)
        hint = f"did you mean {prefix}{near[0]}? Or: " if near else ""
        raise ValueError(f"unknown {what}: {name}; {hint}{more}")


def parse_arguments(argv, default_config: str, *dataclass_types, description: str):
    """(name of the config, one object per dataclass, the run's arguments), threads and seed set."""
    parser = Parser([*dataclass_types, RunArguments], description=description)
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file of flags (default: {default_config}.yaml)."
    )
    name, *filled = parser.parse(sys.argv[1:] if argv is None else list(argv), default_config)
    machine.set_threads()
    machine.keep_freed_memory()
    disable_progress_bar()  # transformers' own, of writing shards; training keeps its bar
    return name, *filled


def one_line_errors(main):
    """What a user can cause ends in one line and exit status 2 (GROUNDUP_DEBUG=1: a traceback)."""

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            return main(argv)
        except KeyboardInterrupt as stop:
            print(f"stopped; {_how_to_resume(argv)}", file=sys.stderr)
            raise SystemExit(130) from stop
        except Exception as error:
            if disk_is_full(error):
                message = f"disk full: free some space; {_how_to_resume(argv)}"
            elif isinstance(error, ValueError | OSError | SafetensorError):
                message = " ".join(str(error).split())  # all on one line
            else:
                raise
            if os.environ.get("GROUNDUP_DEBUG"):
                traceback.print_exc()
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapper


def _how_to_resume(argv) -> str:
    flags = sys.argv[1:] if argv is None else argv
    anew = any(flag.startswith("--overwrite") for flag in flags)
    return f"the same command{' without --overwrite' * anew} resumes from the newest checkpoint"


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so: each library has its own way.

    Python and safetensors repeat the system's words, tokenizers does so in a bare Exception, and
    torch.save has a RuntimeError about a stream that it could not write to.
    """
    words = ("No space left on device", "quota exceeded", "iostream error", "StreamWriter failed")
    while error is not None:
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


# -------------------------------------------------------------------- folders that appear at once


def put_in_place(staging: Path, path: Path) -> None:
    """Renames a finished folder, so that `path` holds all of its files or does not exist.

    The files are forced to the disk before, and an older folder of this name goes only after.
    """
    for file in staging.rglob("*"):
        if file.is_file():
            _flush(file)
    _flush(staging)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    staging.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    staging = path.with_name(f".{path.name}.partial")
    try:
        staging.write_text(text, encoding="utf-8")
        _flush(staging)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------- checkpoints


def seal(folder: Path, train_seconds: float, **more) -> None:
    """Writes down what a checkpoint holds, so that `find_checkpoint` can tell whether it is all.

    And how it came about: after how many seconds of training, and what else is told.
    """
    sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    content = {"train_seconds": train_seconds, **more, "bytes": sizes}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def find_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; says which damaged ones it passes over."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if p.name[11:].isdigit()]
    for folder in sorted(folders, key=lambda p: int(p.name[11:]), reverse=True):
        fault = damage(folder)
        if fault is None:
            return folder
        print(f"{folder} is damaged ({fault}); trying the one before it")
    if folders:
        print(f"{output_dir} has no whole checkpoint: starting from the beginning")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["bytes"]
        for name, size in sizes.items():
            if (found := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {found} bytes, not {size}"
        check_weights(checkpoint)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError) as error:
        return f"unreadable: {error}"
    return None


def check_weights(folder: Path) -> None:
    """Raises ValueError for a file of weights that cannot be read; says which."""
    for weights in folder.glob("*.safetensors"):
        try:
            with safe_open(weights, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{weights.name}: {error}") from error


def keep_newest(output_dir: Path, count: int | None) -> None:
    """Deletes all but the `count` newest checkpoints (None: deletes nothing)."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if p.name[11:].isdigit()]
    folders.sort(key=lambda p: int(p.name[11:]))
    if count is not None:
        for folder in folders[: max(0, len(folders) - count)]:
            shutil.rmtree(folder)


def read_json(path: Path):
    """What a JSON file of a run holds.

    Raises:
        ValueError: it is damaged; says which one.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no JSON: {error}") from error


def check_folder(args: RunArguments, config_class: type[PreTrainedConfig] | None = None) -> None:
    """Refuses an `output_dir` that will not do, before any data is read.

    Raises:
        ValueError: `--evaluate_only` finds no model there, a damaged one, or not one of this
            config's; or a run is to be put where other files lie.
        OSError: the folder cannot be written.
    """
    if not args.evaluate_only:
        _check_place(Path(args.output_dir))
        return
    file = Path(args.output_dir) / "config.json"
    if not file.is_file():
        raise ValueError(f"{args.output_dir} holds no model to score; train one first")
    found = read_json(file).get("model_type")
    if config_class and found != config_class.model_type:
        raise ValueError(
            f"{args.output_dir} holds a {found}, and this script scores {config_class.model_type}"
        )
    try:
        check_weights(file.parent)
    except ValueError as error:
        raise ValueError(f"{args.output_dir} is damaged ({error}); train anew") from error


def note_other_data(args: RunArguments, data: dict) -> None:
    """Says where `--evaluate_only` scores a run on other data than its own score is of."""
    finished = Path(args.output_dir) / "metrics.json"
    own = read_json(finished)["data"] if finished.exists() else data
    if own["fingerprint"] != data["fingerprint"]:
        print(f"note: this run's own score is on {own['name']}; this is another data set or text")


def prepare_folder(args: RunArguments, settings: dict) -> Path | None:
    """Looks at what `output_dir` holds before a run, and gives the checkpoint to resume from.

    A finished run ends the program (exit status 0), once it is published where that is asked for. A
    run that was begun with other settings is not mixed with this one. No run changes here yet: that
    is for `begin`, once it is clear that this one's data and model can be had.

    Raises:
        ValueError: the folder holds a run with other settings, or what is no run at all.
        OSError: the folder cannot be written.
    """
    folder = Path(args.output_dir)
    args.settings = settings
    _check_place(folder)
    finished, begun = folder / "metrics.json", folder / "settings.json"
    if args.overwrite:
        return None
    changed = ""
    if finished.exists() or _has_checkpoints(folder):
        changed = _changed(begun, settings, args.default_settings)
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({changed}); give the same ones to go on "
            f"with it, --overwrite to start anew, or another --output_dir"
        )
    if finished.exists():
        if args.process_index == 0:
            print(f"{folder} holds a finished run; --overwrite starts anew")
            if args.publish:
                publish(args)
        raise SystemExit(0)
    return find_checkpoint(folder)


def _has_checkpoints(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*"))


def _changed(begun: Path, settings: dict, defaults: dict) -> str:
    """What differs from the settings that a run was begun with, in words; empty if nothing."""
    if not begun.exists():
        return ""
    # A setting that the code of that time did not have was what is the default now.
    before = {k: defaults[k] for k in settings.keys() & defaults.keys()} | read_json(begun)
    changed = {k for k in settings | before if settings.get(k) != before.get(k)}
    # One that is gone since is off.
    names = sorted(k for k in changed if k in settings or before[k])
    return ", ".join(f"{k} was {before.get(k)}, is {settings.get(k)}" for k in names)


def _check_place(folder: Path) -> None:
    """Whether a run may be put here: the folder can be written, and is a run's or empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder}: {error.strerror}; choose another --output_dir"
        ) from error
    is_run = (folder / "metrics.json").exists() or (folder / "settings.json").exists()
    if not is_run and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no run; choose another --output_dir")


def begin(args: RunArguments, checkpoint: Path | None) -> None:
    """Makes the folder that `prepare_folder` looked at this run's: from here on, it is under way.

    Called when data and model are made, so that a mistake in their arguments costs no earlier run.
    Checkpoints that are newer than the one to resume from are damaged, and go: the run will come to
    their updates again.
    """
    if args.settings is None:
        return
    folder = Path(args.output_dir)
    with args.main_process_first(local=False):  # nobody trains before the folder is ready
        if args.process_index == 0:
            if args.overwrite:
                shutil.rmtree(folder)
                folder.mkdir()
            newer = -1 if checkpoint is None else int(checkpoint.name[11:])
            for old in folder.glob("checkpoint-*"):
                if old.name[11:].isdigit() and int(old.name[11:]) > newer:
                    shutil.rmtree(old)
            write_whole(folder / "settings.json", json.dumps(args.settings, indent=1))


def settings_of(args: RunArguments, *others, data: dict) -> dict:
    """All that makes a run what it is: what a resumed run must have in common with its beginning.

    What is `FREE` may change. `data` is what `describe` says of the data: its content counts, not
    where it lies. What each setting is by default goes to `args`: `prepare_folder` takes it for
    what a run of older code, which lacked the setting, did.
    """
    settings = {"processes": args.world_size, "data": data["fingerprint"]}
    for part in (*map(dataclasses.asdict, others), args.to_dict() | args.asked):
        settings |= {name: value for name, value in part.items() if not FREE.match(name)}
    defaults = {}
    for one in (one for part in (*others, args) for one in dataclasses.fields(part)):
        if one.default_factory is not dataclasses.MISSING:
            defaults[one.name] = one.default_factory()
        elif one.default is not dataclasses.MISSING:
            defaults[one.name] = one.default
    args.default_settings = json.loads(json.dumps(defaults, default=str))
    return json.loads(json.dumps(settings, default=str))


# --------------------------------------------------------------------------------------- Trainer


class Stopwatch(TrainerCallback):
    """Seconds of optimisation: fetching, forward, backward, update; not evaluation, not saving."""

    def __init__(self):
        self.seconds = 0.0
        self.since = 0.0

    def mark(self, *args, **kwargs):
        """Begin to count from here."""
        self.since = time.perf_counter()

    on_train_begin = on_save = mark

    def on_step_end(self, *args, **kwargs):
        """Count up to here."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now


class Tidy(TrainerCallback):
    """Gives back freed memory three times a minute, and every 50 updates where these take 2 s.

    Batches of unequal size leave pieces behind that fit none of the next ones: in 200 updates of
    BERT the peak grew to 2.23 GiB, and further; given back twice a minute, it stayed at 2.04. In
    whole runs, given back after some 165 and 55 updates, it was 3.05 and 2.80; in two that
    skip-gram went before, after some 100 and 50, it was 3.21 and 3.00.
    """

    def __init__(self):
        self.since, self.updates = time.perf_counter(), 0

    def on_step_end(self, *args, **kwargs):
        """Is it time?"""
        self.updates += 1
        seconds = time.perf_counter() - self.since
        if seconds > 20 or (self.updates >= 50 and seconds > 2):
            machine.release_freed_memory()
            self.since, self.updates = time.perf_counter(), 0


class OneEpoch(TrainerCallback):
    """Of a stream without an end, Trainer takes the whole run for one epoch.

    It counts the steps of that epoch from 0 where it resumes and skips no data: this mends its log.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """What share of the epoch is done."""
        state.epoch = state.global_step / state.max_steps


class RunTrainer(Trainer):
    """transformers' Trainer, with whole checkpoints, Muon, streams and a stopwatch.

    Trainer resumes from the highest-numbered folder, whole or not, and a folder without its
    optimiser would go on silently with a fresh one. Here a checkpoint is written under another
    name and renamed when it is complete; only then is an older one deleted.

    A `train_dataset` may be a stream: an endless IterableDataset of this process's own examples,
    with `state_dict` and `load_state_dict`. Its place is part of a checkpoint, so that a resumed
    run goes on with the next example, without reading all that were before.
    """

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except RuntimeError as error:  # --report_to names a package that is not installed
            raise ValueError(str(error)) from error
        self.stopwatch = Stopwatch()
        self.add_callback(self.stopwatch)
        self.add_callback(Tidy())
        self._model_class = type(self.model)  # FSDP will make another of it
        self._staging = None
        self.is_streaming = isinstance(self.train_dataset, torch.utils.data.IterableDataset)
        if self.is_streaming:
            if self.args.dataloader_num_workers:
                raise ValueError(
                    "a stream is read by the process that trains on it, whose place in it a "
                    "checkpoint holds: leave out --dataloader_num_workers"
                )
            self.args.ignore_data_skip = True  # Trainer need not skip what the stream has left
            self.add_callback(OneEpoch)

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs):
        """Trains, from a checkpoint that `find_checkpoint` gave or from the start."""
        if self.args.gradient_checkpointing and not self.model.supports_gradient_checkpointing:
            raise ValueError(
                f"a {self.model.config.model_type} cannot compute its activations again: leave out "
                f"--gradient_checkpointing and --activation_checkpointing"
            )
        begin(self.args, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            manifest = json.loads((resume_from_checkpoint / MANIFEST).read_text(encoding="utf-8"))
            self.stopwatch.seconds = manifest["train_seconds"]
            print(f"resuming from {resume_from_checkpoint}")
            before, now = manifest.get("precision", self.args.precision), self.args.precision
            if not before.endswith(now):  # on another machine
                before = f"{before}, then {now}"
            self.args.precision = before
            if self._is_trained(resume_from_checkpoint):
                return None  # Trainer would make one update more
            if self.is_streaming:
                place = (resume_from_checkpoint / self._place_file).read_text(encoding="utf-8")
                self.train_dataset.load_state_dict(json.loads(place))
            resume_from_checkpoint = str(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def scores(self) -> dict[str, float]:
        """What `evaluate` says after the last update, asked again only where it was not then."""
        for entry in self.state.log_history[::-1]:
            if "eval_loss" in entry and entry["step"] == self.state.global_step:
                break
        else:
            entry = self.evaluate()
        return {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}

    def _is_trained(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of the last update; if so, takes its weights and its log."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        # Where it was not given, the number of updates of so many epochs, as the checkpoint had it.
        last = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        if state.global_step < last:
            return False
        self._shard()
        self._load_from_checkpoint(str(checkpoint))
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        self.state = state
        return True

    def evaluate(self, *args, **kwargs):
        """The scores of the model as it is, trained here or not.

        Its loader draws a seed, which must not be one of the run's random numbers: how often a run
        is evaluated would change what it learns.
        """
        self._shard()
        machine.release_freed_memory()
        with torch.random.fork_rng():
            scores = super().evaluate(*args, **kwargs)
        machine.release_freed_memory()
        self.stopwatch.mark()  # none of this was training
        return scores

    def _shard(self):
        # What is trained is sharded by then. FSDP takes a model only together with its optimiser.
        if self.is_fsdp_enabled and self.optimizer is None:
            self.model, self.optimizer = self.accelerator.prepare(
                self.model, self.create_optimizer()
            )

    def whole_model(self):
        """The model as it was made, for the first process to save: without what wraps it.

        What FSDP has spread over the processes is gathered, so every process must call this; the
        weights are then in the first one only.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not self.is_fsdp_enabled:
            return model
        weights = self.accelerator.get_state_dict(self.model)
        whole = self._model_class(model.config)
        if hasattr(model, "generation_config"):
            whole.generation_config = model.generation_config
        if self.is_world_process_zero():
            whole.load_state_dict(weights)
        return whole

    @property
    def _place_file(self) -> str:
        return f"stream_{self.args.process_index}.json"

    def get_train_dataloader(self):
        """Trainer's own; of a stream, a plain DataLoader.

        Accelerate's would share the examples out once more, and be a batch ahead of the training,
        so that a checkpoint would hold the wrong place. Its generator is there for it to draw a
        seed from: it must not draw from those of the run, which a resumed one has restored.
        """
        if not self.is_streaming:
            return super().get_train_dataloader()
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
        )

    def _save_rng_state(self, output_dir):
        # Every process comes by here for its random numbers, before the checkpoint is sealed.
        super()._save_rng_state(output_dir)
        if self.is_streaming:
            place = json.dumps(self.train_dataset.state_dict())
            (Path(output_dir) / self._place_file).write_text(place, encoding="utf-8")

    def _issue_warnings_after_load(self, load_result):
        # A tied weight is saved once, under its other name: nothing is missing.
        tied = set(self.model.all_tied_weights_keys)
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def create_optimizer(self, model=None):
        """AdamW, or Muon for the hidden matrices where `muon_learning_rate` is set."""
        if not self.args.muon_learning_rate or self.optimizer is not None:
            return super().create_optimizer(model)
        groups = muon_groups(model or self.model, self.args)
        betas = (self.args.adam_beta1, self.args.adam_beta2)
        self.optimizer = Muon(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        """Of data whose draws go by the epoch, as those of pictures do, an order that tells it.

        And of data with a column `length`, batches of rows of about one length, where
        `--train_sampling_strategy group_by_length` asks for it.
        """
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if hasattr(dataset, "set_epoch"):
            return EpochSampler(dataset, seed)
        by_length = self.args.train_sampling_strategy == "group_by_length"
        if by_length and "length" in getattr(self.train_dataset, "column_names", ()):
            # Of `dataset`, Trainer has taken off what the model does not read.
            lengths = self.train_dataset["length"]
            return LengthSampler(lengths, self._train_batch_size, seed, trainer=self)
        return super()._get_train_sampler(train_dataset)

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        # Trainer asks `_get_output_dir` where to put `checkpoint-N`, and rotates what it finds
        # there: we let it work in an empty folder, and rotate ourselves once the new one stands.
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._staging = str(output_dir / ".saving")
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the other processes' random states are in
            if self.args.should_save:
                written = Path(self._staging) / name
                seal(written, self.stopwatch.seconds, precision=self.args.precision)
                put_in_place(written, output_dir / name)
                keep_newest(output_dir, self.args.save_total_limit)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir=None, state_dict=None):
        # FSDP makes a class of its own of the model's, whose code would be saved instead of ours.
        wrapped_class = type(self.model)
        if self.is_fsdp_enabled:
            self.model.__class__ = self._model_class
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = wrapped_class
        if self.args.should_save:
            # Trainer leaves a pickle of its arguments, which nothing reads and nobody should load.
            (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)


def muon_groups(model, args) -> list[dict]:
    """Hidden matrices and filters for Muon; embeddings, heads, norms and biases for AdamW.

    A head is what gives the scores: the output embeddings, or a module called `classifier`, which
    alone of these has weight decay. Filters of modules with `norm_follows` keep their size (see
    `Muon`), and need none.
    """
    apart = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    apart += [model.get_output_embeddings(), getattr(model, "classifier", None)]
    apart = {id(p) for module in apart if module is not None for p in module.parameters()}
    normed = {id(m.weight) for m in model.modules() if getattr(m, "norm_follows", False)}
    classifier = getattr(model, "classifier", None)
    decayed = {id(p) for p in classifier.parameters() if p.ndim > 1} if classifier else set()
    hidden, filters, heads, rest = [], [], [], []
    for p in model.parameters():
        if not p.requires_grad:
            continue
        if id(p) in decayed:
            heads.append(p)
        elif p.ndim < 2 or id(p) in apart:
            rest.append(p)
        else:
            (filters if id(p) in normed else hidden).append(p)
    muon = {"use_muon": True, "lr": args.muon_learning_rate, "momentum": args.muon_momentum}
    adamw = {"use_muon": False, "lr": args.learning_rate}
    groups = [
        {"params": hidden, **muon, "weight_decay": args.weight_decay},
        {"params": filters, **muon, "weight_decay": 0.0, "keep_norm": True},
        {"params": heads, **adamw, "weight_decay": args.weight_decay},
        {"params": rest, **adamw, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
