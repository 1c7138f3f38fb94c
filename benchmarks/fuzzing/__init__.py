"""Fuzzers of what this package promises: seeded cases, and a check of each against what must hold for all of them."""
