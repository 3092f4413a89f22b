"""Points: what a network makes of the probe images, computed on devices and stored on disk."""
