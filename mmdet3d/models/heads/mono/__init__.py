"""Heads of detectors that look through one camera: dense maps, then regions around objects (GUPNet, DID-M3D)."""
