"""KITTI object detection: files as published."""
