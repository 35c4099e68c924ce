"""Start-up time of the command line: from the shell until it answers.

python benchmarks/startup.py
"""

import subprocess
import sys

import common

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import semiseg": ("-c", "import semiseg"),
    "semiseg --help": ("-m", "semiseg", "--help"),
    "semiseg methods": ("-m", "semiseg", "methods"),
    "semiseg train, refused for want of a recipe": ("-m", "semiseg", "train", "no-such-recipe.yaml"),
}


def start(words: tuple[str, ...]) -> None:
    """Runs a command; one that cannot be run is a mistake here."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == (2 if words[-1].endswith(".yaml") else 0), done.stderr


def measure(run: common.Settings, results: common.Results) -> None:
    """Times every command in turns."""
    results.time({name: lambda words=words: start(words) for name, words in COMMANDS.items()}, usual=5, warm_up=1)
    results.ratio("semiseg --help / python", "semiseg --help", "python -c pass")
    results.ratio("semiseg methods / import torch", "semiseg methods", "import torch")


if __name__ == "__main__":
    common.main("startup", __doc__, measure)
