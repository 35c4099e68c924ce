"""The command `semiseg`, also as `python -m semiseg` for launchers of several processes."""

from semiseg.engine.signals import leaving_at_once


def main() -> None:
    """Runs the command line."""
    with leaving_at_once():  # without this, Ctrl-C would print the traceback of an import
        from semiseg import cli
    cli.main()


if __name__ == "__main__":
    main()
