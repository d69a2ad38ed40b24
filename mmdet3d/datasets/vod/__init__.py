"""View-of-Delft: KITTI's layout with 4-D radar, and the data set."""
