"""Runs compared: grouped over seeds, with intervals and tests."""
