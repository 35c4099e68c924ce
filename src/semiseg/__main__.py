"""The command `semiseg`; also `python -m semiseg`, which launchers of several processes call."""

from semiseg.engine.signals import leaving_at_once


def main() -> None:
    """Entry point."""
    with leaving_at_once():  # Ctrl-C is no traceback out of an import
        from semiseg import cli
    cli.main()


if __name__ == "__main__":
    main()
