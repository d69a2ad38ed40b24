"""Timed and counted evidence; see README.md in this folder for the contract."""

import mmdet3d as mmdet3d  # before torch, because it decides how the threads of torch wait
