"""The command-line tools: a function `main(words)` each. `distill3d.py` and `tools/*.py` start them."""
