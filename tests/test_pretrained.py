"""The models in `pretrained/` give the scores that `results/` says, on the real data."""

import json
import os

import pytest

from groundup import results

PUBLISHED = [result for result in results.read_results() if "pretrained" in result]


@pytest.mark.skipif(
    "GROUNDUP_DATA" not in os.environ,
    reason="needs the real data: set GROUNDUP_DATA to the folder that holds it",
)
@pytest.mark.parametrize("result", PUBLISHED, ids=[result["config"] for result in PUBLISHED])
def test_a_published_score_can_be_had_again(result):
    folder = results.PRETRAINED / result["config"]
    again = results.rescore(result, folder)
    for name, published in result["pretrained"].items():
        agrees = results.same(result["config"], name, again[name], published, results.ELSEWHERE)
        assert agrees, (name, again[name], published)


def test_pretrained_models_have_the_code_of_models():
    """So that a mistake that is mended is mended for who loads them, too."""
    for folder in (p for p in results.PRETRAINED.iterdir() if p.is_dir()):
        code = {file.name: file.read_bytes() for file in results.code_of(folder)}
        found = {file.name: file.read_bytes() for file in folder.glob("*.py")}
        assert found == code, f"{folder.name}: run `make code`, then `make verify`"


def test_pretrained_models_are_small_and_hold_no_pickle():
    sizes = {}
    for folder in (p for p in results.PRETRAINED.iterdir() if p.is_dir()):
        files = [p for p in folder.rglob("*") if p.is_file()]
        sizes[folder.name] = sum(p.stat().st_size for p in files) / 1e6  # MB
        assert not [p.name for p in files if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
        assert (folder / "README.md").is_file()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "float32"  # not every CPU is fast in bf16, as the files have it
    assert all(size <= 10 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 150
