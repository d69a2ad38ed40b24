"""What a machine with a GPU is asked first: python -m benchmarks.gpu (docs/performance.md, "On a GPU")."""
