"""Points: a network's attribution maps and representations of the probe images, computed on devices and stored."""
