"""Every test runs with the shapes in semiseg's annotations checked by beartype."""

from jaxtyping import install_import_hook

install_import_hook("semiseg", "beartype.beartype")
