"""The library by which lmsd works on the tensors of torch 2.11. lmsd finds it; there is nothing to import."""
