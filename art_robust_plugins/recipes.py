"""Comparisons of trainings in TOML files, and what runs them: the public names of `experiments.recipes`."""

from .experiments.recipes import Recipe, Row, available_recipes, load_recipe, result_rows, run_recipe

__all__ = ["Recipe", "Row", "available_recipes", "load_recipe", "result_rows", "run_recipe"]
