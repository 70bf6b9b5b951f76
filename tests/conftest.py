"""What all tests share: a stand-in Hub, never the real one; fresh processes; threads."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import hub`, `import contract`, from any folder
from hub import StandInHub

# The Hugging Face libraries read their environment once, when they are imported: so this stands
# here, not in a fixture. Whatever the user has set about their own Hub account is left out.
_HUB = StandInHub().__enter__()
_HOME = tempfile.TemporaryDirectory(prefix="groundup-tests-")
for _name in [n for n in os.environ if n.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ.update(
    HF_ENDPOINT=_HUB.url,
    HF_HOME=_HOME.name,
    HF_TOKEN="hf_of_the_stand_in",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    NO_PROXY="127.0.0.1,localhost",
)


def pytest_collection_finish():
    """All cores that this process may use, unless OMP_NUM_THREADS says otherwise."""
    if "torch" in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        from groundup.train.machine import cores  # here: it imports torch, and the Hub's client

        sys.modules["torch"].set_num_threads(cores())


def pytest_unconfigure():
    _HUB.__exit__()
    _HOME.cleanup()


@pytest.fixture
def hub():
    """The stand-in Hub that HF_ENDPOINT names, without faults. Its repositories stay: use names
    that no other test uses."""
    _HUB.heal()
    yield _HUB
    _HUB.heal()


# ------------------------------------------------------------------------------ fresh processes

# In a fresh process the toolkit must not be there, though it is installed in this environment.
_PREAMBLE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "groundup":
            raise ImportError("groundup is hidden")

sys.meta_path.insert(0, Hidden())
try:
    import groundup
except ImportError as error:
    assert str(error) == "groundup is hidden", error
else:
    raise AssertionError("groundup can be imported")

script = sys.argv.pop(1)
sys.argv[0] = script
exec(compile(open(script).read(), script, "exec"), {"__name__": "__main__", "__file__": script})
"""


@dataclass
class Finished:
    """What a fresh process left behind."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """The last line that it printed."""
        return json.loads(self.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory):
    """Runs code in a process that has never heard of Groundup.

    `fresh_python(code_or_script, *args, cwd=None, env=None, check=True)`: a piece of code, or the
    Path of a script. The process has its own HF_HOME, another working folder, and cannot import
    `groundup`. With `check`, a failure is an error that shows what it wrote. One such process
    costs about ten seconds when it imports transformers: put many questions into one.
    """

    def run(code: str | Path, *args: str, cwd=None, env=None, check=True, timeout=300) -> Finished:
        folder = tmp_path_factory.mktemp("fresh")
        script = code
        if not isinstance(code, Path):
            script = folder / "script.py"
            script.write_text(code)
        result = subprocess.run(
            # -I: no PYTHONPATH, no working folder on sys.path
            [sys.executable, "-I", "-c", _PREAMBLE, str(script), *map(str, args)],
            cwd=cwd or folder,
            env=os.environ | {"HF_HOME": str(folder / "hf")} | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode:
            raise AssertionError(f"the fresh process failed:\n{result.stdout}\n{result.stderr}")
        return Finished(result.returncode, result.stdout, result.stderr)

    return run
