"""Pool members' predictions into one distribution per image, decide the classes, and store both steps as a recipe."""

from ensemble.blend.blend import blend
from ensemble.blend.recipe import make_recipe

__all__ = ["blend", "make_recipe"]
