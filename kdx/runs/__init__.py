"""The folder of a run: its id, what is written into it and how it is read."""
