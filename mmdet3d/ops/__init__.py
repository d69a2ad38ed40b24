"""Operators: each is a folder with the public function and a readable PyTorch implementation (`reference.py`)."""
