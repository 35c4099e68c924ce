"""The interface through which training reports its progress."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Receives what happens in a run."""

    def on_step(self, record: dict[str, Any]) -> None:
        """Called after each step.

        Args:
            record: `step`, i.e. completed steps; `images_per_step`; and what the method says of its losses, as far as
                it is known without waiting for the device: of this step on a CPU, of the one before on a GPU.
        """

    def on_train(self, record: dict[str, Any]) -> None:
        """Called after a training record was logged."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Called after `done` of `total` validation images were evaluated."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """Called after a validation record was logged."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Called after an event was written to events.jsonl."""


class Several:
    """A reporter that passes everything on to several others, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def on_step(self, record: dict[str, Any]) -> None:
        """Passes a step on."""
        for reporter in self.reporters:
            reporter.on_step(record)

    def on_train(self, record: dict[str, Any]) -> None:
        """Passes a training record on."""
        for reporter in self.reporters:
            reporter.on_train(record)

    def on_evaluation(self, done: int, total: int) -> None:
        """Passes on how far an evaluation is."""
        for reporter in self.reporters:
            reporter.on_evaluation(done, total)

    def on_scores(self, record: dict[str, Any]) -> None:
        """Passes a validation record on."""
        for reporter in self.reporters:
            reporter.on_scores(record)

    def on_event(self, event: dict[str, Any]) -> None:
        """Passes an event on."""
        for reporter in self.reporters:
            reporter.on_event(event)


class Silent:
    """A reporter that reports nothing."""

    def on_step(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def on_train(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Does nothing."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """Does nothing."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Does nothing."""
