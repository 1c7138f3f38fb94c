"""Recipes: comparisons of trainings in TOML files, and the code that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...on_demand import import_on_demand

if TYPE_CHECKING:
    from .benchmark import run_recipe
    from .recipe import Recipe, Row, available_recipes, load_recipe
    from .tables import result_rows

__all__ = ["Recipe", "Row", "available_recipes", "load_recipe", "result_rows", "run_recipe"]

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "benchmark": ("run_recipe",),
        "recipe": (
            "Recipe",
            "Row",
            "available_recipes",
            "load_recipe",
        ),
        "tables": ("result_rows",),
    },
)
