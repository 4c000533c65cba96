"""Inference of finished students, timed."""
