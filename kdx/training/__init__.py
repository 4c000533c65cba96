"""One trainer for every method: a pure step, its optimiser, its state and its checkpoints."""
