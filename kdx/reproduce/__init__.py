"""The papers' tables: rows, published numbers, claims, statistics."""
