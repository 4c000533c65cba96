"""Finished students as files for use elsewhere; `export` is the way in."""
