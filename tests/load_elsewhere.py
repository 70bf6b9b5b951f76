"""Runs where Groundup is not: loads every saved model through its remote code, and uses it.

    load_elsewhere.py MANIFEST REPORT

The manifest lists checkpoints: {name, source: a folder or a Hub id, auto_classes, known: a folder}.
`known` holds `<auto class>.batch`, the inputs, and perhaps `<auto class>.expected`, the outputs of
the process that saved the model (both safetensors). The report says of each "ok" or what is wrong.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def outputs(model, batch: dict, seed: int) -> dict:
    torch.manual_seed(seed)
    with torch.no_grad():
        answer = model(**batch)
    return {key: value for key, value in answer.items() if isinstance(value, torch.Tensor)}


def check_outputs(model, known: Path) -> None:
    """Outputs are finite, and the same as those that are known."""
    found = outputs(model, load_file(f"{known}.batch"), seed=0)
    for key, value in found.items():
        assert value.isfinite().all(), f"{key} is not finite"
    if not Path(f"{known}.expected").exists():
        return
    expected = load_file(f"{known}.expected")
    assert found.keys() == expected.keys(), f"{set(found)} instead of {set(expected)}"
    for key, value in expected.items():
        difference = (found[key] - value).abs().max().item()
        assert difference <= 1e-6, f"{key} is off by {difference}"


def load(auto_class: str, source: str):
    model, info = getattr(transformers, auto_class).from_pretrained(
        source, trust_remote_code=True, output_loading_info=True
    )
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


def check(entry: dict, scratch: Path) -> None:
    source = entry["source"]
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
    assert config.model_type.startswith("groundup-"), config.model_type
    for auto_class in entry["auto_classes"]:
        known = Path(entry["known"]) / auto_class
        model = load(auto_class, source)
        check_outputs(model, known)
        again = scratch / entry["name"] / auto_class
        model.save_pretrained(again)  # what was loaded elsewhere can be saved and loaded again
        check_outputs(load(auto_class, str(again)), known)


def main(manifest: str, report: str) -> None:
    results = {}
    for entry in json.loads(Path(manifest).read_text()):
        try:
            check(entry, Path(report).parent / "again")
            results[entry["name"]] = "ok"
        except Exception:
            results[entry["name"]] = traceback.format_exc()
    Path(report).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
