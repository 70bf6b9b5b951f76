"""The published figures and the package: what is written down in two places must agree."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from groundup import results
from groundup.train import recipe

ROOT = Path(results.__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = {path.stem for path in (ROOT / "train").glob("*.py")}
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def a_run(seed: int, score: float, **changes) -> dict:
    """What metrics.json holds."""
    run = {
        "system": "toy",
        "config": "toy_small",
        "metrics": {"nats": score, "bits": 2 * score},
        "data": {"name": "words", "source": "here", "license": "none", "fingerprint": "f00d"},
        "seed": seed,
        "train_seconds": 10.0 + seed,
        "peak_memory_bytes": 2**30 * (1 + seed),
        "hardware": {"processor": "some", "cores": 2, "accelerators": []},
        "precision": "bf16",
        "versions": {"python": "3.11"},
        "commit": "c0ffee",
        "command": f"python train/toy.py --seed {seed}",
    }
    return run | changes


# ------------------------------------------------------------------------------------ summarising


def test_a_result_is_the_mean_over_its_seeds():
    result = results.summarise([a_run(0, 1.0), a_run(1, 2.0), a_run(2, 4.5)])
    assert result["seeds"] == [0, 1, 2]
    nats = result["metrics"]["nats"]
    assert nats["values"] == [1.0, 2.0, 4.5]
    assert nats["mean"] == pytest.approx(2.5)
    assert nats["deviation"] == pytest.approx(1.8027756)  # of a sample: divided by n - 1
    assert result["metrics"]["bits"]["mean"] == pytest.approx(5.0)
    assert result["train_seconds"] == [10.0, 11.0, 12.0]
    assert result["peak_memory_bytes"] == [2**30, 2**31, 3 * 2**30]
    assert result["command"].endswith("--seed 0")


def test_one_seed_has_no_deviation():
    assert results.summarise([a_run(0, 1.0)])["metrics"]["nats"]["deviation"] is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("commit", "decade"),
        ("config", "toy_large"),
        ("system", "other"),
        ("versions", {"python": "3.12"}),
        ("precision", "fp32"),
        ("data", {"name": "words", "fingerprint": "beef"}),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(key, value):
    with pytest.raises(ValueError, match=f"the runs differ in {key}"):
        results.summarise([a_run(0, 1.0), a_run(1, 1.0, **{key: value})])


def test_the_same_seed_twice_is_refused():
    with pytest.raises(ValueError, match="same seed"):
        results.summarise([a_run(3, 1.0), a_run(3, 1.1)])


def test_settings_that_are_not_in_the_config_are_refused():
    with pytest.raises(ValueError, match=r"not in their config.*learning_rate"):
        results.summarise([a_run(0, 1.0, command="python train/toy.py --learning_rate=1")])
    results.summarise([a_run(0, 1.0, command="python train/toy.py --seed 0 --disable_tqdm true")])


# --------------------------------------------------------------------------------------- the table


@pytest.fixture
def bars(tmp_path, monkeypatch):
    """Writes a bars.yaml for `toy_small`: `bars(1.5, lower=True)`."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)

    def write(bar: float, lower: bool, config: str = "toy_small") -> None:
        lines = [f"{config}:", "  metric: nats", f"  lower: {str(lower).lower()}"]
        lines += [f"  bar: {bar}", "  unit: nats", "  anchor: someone's 1.9"]
        (tmp_path / "bars.yaml").write_text("\n".join(lines))

    return write


def test_a_row_of_the_table(bars):
    bars(2.0, lower=True)
    row = results.table([results.summarise([a_run(0, 1.0), a_run(1, 2.0)])]).splitlines()[-1]
    assert row == (
        "| [`toy_small`](configs/toy_small.yaml) | words | **1.5000** ± 0.7071 nats (2 seeds) "
        "| 10 s | 2.00 GiB | ≤ 2.0 | someone's 1.9 |"
    )
    run = a_run(0, 1.0)
    run["hardware"] = run["hardware"] | {"cores": 1}
    assert "| 10 s of one core |" in results.table([results.summarise([run])])
    in_fp32 = results.summarise([a_run(0, 1.0, precision="fp32")])
    assert "| 10 s in fp32 |" in results.table([in_fp32])


def test_a_card_begins_with_the_mean_over_the_seeds(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("| nats | **1.0** |\n| Data | words |\n\n| Data | of another table |\n")
    results.add_means(card, results.summarise([a_run(0, 1.0), a_run(1, 2.0)]))
    assert card.read_text().splitlines() == [
        "| nats | **1.0** |",
        "| Mean of 2 seeds, of which this is one | nats 1.5000 ± 0.7071, bits 3.0000 ± 1.4142 |",
        "| Data | words |",
        "",
        "| Data | of another table |",
    ]


@pytest.mark.parametrize(
    ("bar", "lower", "verdict"),
    [
        (1.5, True, "≤ 1.5"),
        (1.49, True, "≤ 1.49: **not reached**"),
        (1.5, False, "≥ 1.5"),
        (1.51, False, "≥ 1.51: **not reached**"),
    ],
)
def test_a_bar_that_was_not_reached_is_shown_as_not_reached(bars, bar, lower, verdict):
    bars(bar, lower)
    assert f"| {verdict} |" in results.table([results.summarise([a_run(0, 1.5)])])


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(11, "≥ 1.5, ≤ 11 s"), (10, "≥ 1.5, ≤ 10 s: **not reached**")]
)
def test_a_run_may_have_a_time_to_keep(bars, seconds, verdict):
    bars(1.5, lower=False)
    with results.RESULTS.joinpath("bars.yaml").open("a") as file:
        file.write(f"\n  seconds: {seconds}\n")
    row = results.table([results.summarise([a_run(0, 1.5), a_run(1, 1.5)])])  # 10 and 11 seconds
    assert f"| {verdict} |" in row


def test_where_no_bar_was_set_none_is_shown(bars):
    bars(None, lower=True)
    text = results.RESULTS.joinpath("bars.yaml").read_text()
    results.RESULTS.joinpath("bars.yaml").write_text(text.replace("  bar: None\n", ""))
    row = results.table([results.summarise([a_run(0, 1.5)])]).splitlines()[-1]
    assert "**1.5000** nats (1 seed)" in row
    assert "| none |" in row


def test_a_result_without_a_bar_is_named(bars):
    bars(1.0, lower=True, config="another")
    with pytest.raises(ValueError, match="has no entry for toy_small"):
        results.table([results.summarise([a_run(0, 1.0)])])


def test_writing_the_table_changes_nothing_else(bars, tmp_path, monkeypatch):
    bars(2.0, lower=True)
    (tmp_path / "toy_small.json").write_text(
        results.json.dumps(results.summarise([a_run(0, 1.0)])), encoding="utf-8"
    )
    readme = tmp_path / "README.md"
    monkeypatch.setattr(results, "README", readme)
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n", encoding="utf-8")
    results.write_table()
    results.write_table()  # a second time: the same
    table = results.table(results.read_results())
    assert "toy_small" in table
    expected = f"before\n{results.BEGIN}\n{table}\n{results.END}\nafter\n"
    assert readme.read_text(encoding="utf-8") == expected

    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="needs the marks"):
        results.write_table()


def test_the_readme_has_the_table_of_the_results():
    assert results.README.exists(), "there is no README.md"
    text = results.README.read_text(encoding="utf-8")
    marks = text.count(results.BEGIN), text.count(results.END)
    assert marks == (1, 1), f"README.md needs {results.BEGIN} and {results.END} once each"
    published = results.read_results()
    assert published, "results/ has no result"
    written = text.split(results.BEGIN)[1].split(results.END)[0].strip()
    assert written == results.table(published), "run `make results`"


def test_every_result_and_model_has_its_counterpart():
    """A result names a config that exists; a model in `pretrained/` has a result."""
    configs = {path.stem for path in CONFIGS}
    published = {result["config"] for result in results.read_results()}
    assert published <= configs
    folders = {path.parent.name for path in results.PRETRAINED.glob("*/config.json")}
    assert folders == {r["config"] for r in results.read_results() if "pretrained" in r}


# -------------------------------------------------------------------------------------- configs/


class Parsed(BaseException):
    """Raised when a script has read its arguments, so that it goes no further."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read_by_the_script_of_its_row(path, monkeypatch):
    rows = [name for name in SCRIPTS if path.stem == name or path.stem.startswith(f"{name}_")]
    assert rows, f"no script in train/ has a name that {path.name} begins with"
    script = importlib.import_module(f"groundup.train.{max(rows, key=len)}")
    parse = recipe.parse_arguments

    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs))

    monkeypatch.setattr(recipe, "parse_arguments", parse_and_stop)
    with pytest.raises(Parsed) as stopped:
        script.main(["--config", str(path)])
    name, *_, args = stopped.value.args[0]
    assert name == path.stem
    assert Path(args.output_dir) == Path("runs") / path.stem


# ----------------------------------------------------------------------------------- the package


def package_folders() -> dict[str, str]:
    """Package name -> folder, as the tree has them."""
    found = {}
    for top in ("groundup", "models", "data_scripts", "train", "configs"):
        assert (ROOT / top / "__init__.py").exists(), f"{top}/ is no package"
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT)
            parts = folder.parts if top == "groundup" else ("groundup", *folder.parts)
            found[".".join(parts)] = folder.as_posix()
    return found


def test_the_package_list_is_the_tree():
    settings = PYPROJECT["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(package_folders())
    assert settings["package-dir"] == package_folders()


def test_the_wheel_has_every_file_that_is_no_code():
    """A YAML or a template beside the code would be missing after `pip install`, unless listed."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in package_folders().items():
        root = ROOT / folder
        listed = {p for pattern in patterns.get(package, []) for p in root.glob(pattern)}
        files = {p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert {p for p in files if p.suffix != ".py"} <= listed, package


def test_constraints_pin_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    assert all(re.fullmatch(r"==[^,*]+", version) for version in versions.values()), "no pin"
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(project["name"]):
            continue  # an extra made of other extras
        assert name in versions, f"constraints.txt has no {name}"
        version = versions[name].removeprefix("==")
        assert requirement.specifier.contains(version), f"{text}, but {name} is {version}"
