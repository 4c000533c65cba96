"""Reproduction of the papers' tables and figures: their runs, published numbers, claims and statistics."""
