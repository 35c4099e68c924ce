import io

import pytest
from rich.console import Console

from semiseg.engine.progress import ProgressBar
from semiseg.engine.train import Reporter

TRAIN = {"step": 5, "loss": 1.25, "labeled": 1.0, "unlabeled": 0.25, "easiness": 0.625, "images_per_second": 12.34}


def shown(terminal: bool, title: str = "first") -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160, color_system=None)
    with ProgressBar(title, 10, console) as bar:
        assert isinstance(bar, Reporter)
        bar.on_train(TRAIN)
        bar.on_evaluation(3, 4)
        bar.on_scores({"step": 5, "miou": 0.4567})
    return console.file.getvalue()


def test_a_terminal_shows_a_bar():
    text = shown(terminal=True)
    for words in ("first", "5/10", "loss 1.250", "unlabeled 0.250", "easiness 0.625", "12.3 img/s", "mIoU 45.67"):
        assert words in text
    assert "left" in text


def test_elsewhere_a_line_an_evaluation():
    (line,) = shown(terminal=False).splitlines()
    words = "first: step 5 mIoU 45.67 loss 1.250 labeled 1.000 unlabeled 0.250 easiness 0.625 12.3 img/s"
    assert " ".join(line.split()) == words


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("title", ["[/bold]", "[red]x", ":smile:"])
def test_a_title_is_no_markup(terminal, title):
    assert title in shown(terminal, title)
