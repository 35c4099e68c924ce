"""Says which images to label next: `semiseg rank`.

The networks of a run look at images without labels. Those come first that the networks find hard, and that likely show
classes on which the run is weak. Near-duplicates are left out. The present predictions are written for correction.
"""

from semiseg.rank.request import BY, Request
from semiseg.rank.run import rank

__all__ = ["BY", "Request", "rank"]
