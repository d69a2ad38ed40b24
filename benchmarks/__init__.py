"""Timed and counted evidence; see README.md in this folder for the contract."""
