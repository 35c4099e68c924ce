"""The recipe of a run: `file` reads YAML as plain values, `load` makes of them a `Recipe`, which the engine runs."""
