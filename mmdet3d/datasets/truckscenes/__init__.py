"""MAN TruckScenes: nuScenes' tables with several LiDARs and 4-D radars."""
