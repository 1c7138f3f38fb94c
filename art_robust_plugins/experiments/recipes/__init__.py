"""Recipes: comparisons of trainings in TOML files, and the code that runs them."""

from .benchmark import run_recipe
from .recipe import Recipe, Row, available_recipes, load_recipe
from .tables import result_rows

__all__ = ["Recipe", "Row", "available_recipes", "load_recipe", "result_rows", "run_recipe"]
