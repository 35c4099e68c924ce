"""What `engine.precision: auto` means on each kind of machine, and that a run stays in its precision."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from semiseg import api
from semiseg.engine import precision
from semiseg.engine.precision import Choice, cpu_flags, emulation, has_bf16, slowdown
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.recipe.load import load_recipe, validate
from semiseg.runs import Run

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch):
    """cpu_with("avx2", "amx_bf16") makes this machine's CPU one with these flags."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def cpu_with(*flags: str) -> None:
        monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))

    return cpu_with


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2",), Choice("fp32", "the CPU has no bf16 instructions")),
        (("avx2", "avx512f"), Choice("fp32", "the CPU has no bf16 instructions")),
        (("avx512f", "avx512_bf16"), Choice("bf16", "the CPU has avx512_bf16")),
        (("amx_bf16", "avx512_bf16"), Choice("bf16", "the CPU has amx_bf16 and avx512_bf16")),
        (("asimd", "bf16"), Choice("bf16", "the CPU has bf16")),
        ((), Choice("fp32", "the CPU has no bf16 instructions")),
    ],
)
def test_auto_on_a_cpu(cpu_with, flags, expected):
    cpu_with(*flags)
    assert precision.choose("auto", CPU) == expected
    runtime = Runtime("cpu", "auto")
    assert (runtime.precision, runtime.reason) == (expected.precision, expected.reason)
    with runtime.autocast():
        assert torch.is_autocast_enabled("cpu") == (expected.precision == "bf16")


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_the_recipe_names_is_obeyed(cpu_with, asked):
    cpu_with("avx2")
    assert precision.choose(asked, CPU).precision == asked


@pytest.mark.parametrize(
    ("limit", "native"), [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True)]
)
def test_a_limit_on_instructions_counts(cpu_with, monkeypatch, limit, native):
    cpu_with("avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_bf16(CPU)[0] == native
    assert ("ONEDNN_MAX_CPU_ISA" in has_bf16(CPU)[1]) != native


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision.choose("auto", torch.device("cuda")).precision == ("bf16" if native else "fp32")


def test_other_devices_compute_in_fp32():
    assert precision.choose("auto", torch.device("mps")) == Choice("fp32", "bf16 was not tried on mps")


def test_flags_are_read_from_the_system(monkeypatch):
    texts = {
        "processor : 0\nmodel name : Some CPU\nflags\t\t: fpu avx2 amx_bf16\n\nflags : other\n": {
            "fpu",
            "avx2",
            "amx_bf16",
        },
        "processor : 0\nFeatures\t: fp asimd bf16\n": {"fp", "asimd", "bf16"},
        "processor : 0\n": set(),
    }
    for text, flags in texts.items():
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, text=text: text)
        assert cpu_flags() == flags

    def missing(self, encoding):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_flags() == frozenset()


def test_emulation_is_said_with_its_cost(cpu_with, monkeypatch):
    monkeypatch.setattr(precision, "slowdown", lambda device: 23.456)
    cpu_with("avx2")
    assert emulation("bf16", CPU) == (
        "bf16 is emulated here (the CPU has no bf16 instructions): "
        "a small convolution takes 23.5 times as long as in fp32"
    )
    assert emulation("fp32", CPU) is None
    cpu_with("amx_bf16")
    assert emulation("bf16", CPU) is None


def test_the_cost_is_measured(monkeypatch):
    assert slowdown(CPU) > 0
    clock = iter(range(1000))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: float(next(clock)))
    assert slowdown(CPU) == 1  # both read the clock equally often


@pytest.fixture
def train(recipe, tmp_path, cpu_with, monkeypatch):
    """train("auto", "avx2") -> what is printed, by a run of two more steps on a CPU with these flags."""
    monkeypatch.setattr(precision, "slowdown", lambda device: 9.0)
    steps = iter(range(2, 20, 2))

    def train(setting: str, *flags: str, out: str = "run") -> str:
        cpu_with(*flags)
        values = recipe("supervised", engine={"steps": 20, "precision": setting, "save_every": 2, "eval_every": 20})
        console = Console(file=io.StringIO(), width=400)
        stop = next(steps)
        with monkeypatch.context() as patched:
            patched.setattr("semiseg.engine.train._Training._finish_step", leave_after(stop))
            with pytest.raises(UserError, match="enough"):
                api.train(validate(values, "recipe"), tmp_path / out, console=console)
        return console.file.getvalue()

    return train


def leave_after(step):
    from semiseg.engine.train import _Training

    due = _Training._finish_step

    def stopping(self):
        due(self)
        if self.done == step:
            raise UserError("enough")

    return stopping


def test_the_first_line_and_the_run_directory_say_what_was_chosen(train, tmp_path):
    first, *others = train("auto", "amx_bf16").splitlines()
    assert first == f"computing on cpu with {torch.get_num_threads()} threads in bf16: the CPU has amx_bf16"
    assert not any("emulated" in line for line in others)
    run = Run(tmp_path / "run")
    assert run.environment()["precision"] == {"used": "bf16", "reason": "the CPU has amx_bf16", "device": "cpu"}
    assert load_recipe(run.config).engine.precision == "bf16"
    assert run.events()[0]["precision"] == "bf16"


def test_a_run_goes_on_in_the_precision_that_it_started_with(train, tmp_path):
    train("auto", "amx_bf16")
    text = train("auto", "avx2")
    assert "in bf16: " in text.splitlines()[0]
    assert "note: bf16 is emulated here (the CPU has no bf16 instructions)" in text
    assert "takes 9.0 times as long as in fp32; the run goes on in it; a new run with another --out and" in text
    assert "engine.precision=fp32 is faster" in text
    assert {event.get("precision") for event in Run(tmp_path / "run").events()} - {None} == {"bf16"}

    text = train("auto", "avx2", out="other")
    assert "in fp32: the CPU has no bf16 instructions" in text.splitlines()[0]
    assert "in fp32: " in train("auto", "amx_bf16", out="other").splitlines()[0]


def test_a_named_bf16_is_obeyed_with_a_line(train):
    text = train("bf16", "avx2")
    assert "in bf16: set by engine.precision" in text.splitlines()[0]
    assert "note: bf16 is emulated here" in text
    assert "as in fp32; engine.precision=fp32 is faster" in text


def test_another_precision_than_that_of_the_run_is_refused(recipe, tmp_path, cpu_with):
    cpu_with("avx2")
    api.train(validate(recipe("supervised", engine={"precision": "auto"}), "recipe"), tmp_path / "run")
    other = validate(recipe("supervised", engine={"precision": "bf16"}), "recipe")
    with pytest.raises(UserError, match=r"holds a run of another recipe \(engine.precision: fp32 -> bf16\)"):
        api.train(other, tmp_path / "run")


def test_the_shipped_recipes_ask_for_auto():
    from semiseg.recipe import file as recipe_file

    asked = {name: load_recipe(Path(name)).engine.precision for name in recipe_file.shipped()}
    # official recipes as in the authors' code; small ones so that their figures hold on every kind of CPU
    exact = {name for name in asked if name.startswith(("official/", "small/"))}
    assert {asked[name] for name in exact} == {"fp32"}
    assert {asked[name] for name in asked.keys() - exact} == {"auto"}


def test_a_dry_run_says_it_too(recipe, cpu_with):
    cpu_with("avx2")
    console = Console(file=io.StringIO(), width=400)
    api.rehearse(validate(recipe("supervised", engine={"precision": "auto"}), "recipe"), console=console)
    assert "in fp32: the CPU has no bf16 instructions" in console.file.getvalue().splitlines()[0]
