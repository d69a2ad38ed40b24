"""Importing the package registers its parts."""

from distill3d_example.frames import ThreeFrames
from distill3d_example.loss import HuberFeatureLoss

__all__ = ["HuberFeatureLoss", "ThreeFrames"]
