"""Where and how the arithmetic runs: processor or GPU, precision, compilation, CUDA graphs."""
