"""Who is told how training goes."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Listens to a run."""

    def on_train(self, record: dict[str, Any]) -> None:
        """A training record was logged."""

    def on_evaluation(self, done: int, total: int) -> None:
        """`done` of `total` validation images were evaluated."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """A validation record was logged."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Something went into the run's diary."""


class Silent:
    """Tells nobody."""

    def on_train(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Nothing."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Nothing."""
