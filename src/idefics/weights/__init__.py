"""From the name of a model to a module full of weights: find its folder, then stream its tensors in.

Importing this package imports no torch; `load` does.
"""

from idefics.weights.cache import cache_folder, cached
from idefics.weights.files import weight_files
from idefics.weights.hub import Progress
from idefics.weights.locate import find
from idefics.weights.rules import Join, KeyRules
from idefics.weights.stream import Places, load

__all__ = ["Join", "KeyRules", "Places", "Progress", "cache_folder", "cached", "find", "load", "weight_files"]
