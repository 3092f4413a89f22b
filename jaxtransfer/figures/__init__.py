"""Figures: matrices, curves, trees and maps as PNG and SVG files."""
