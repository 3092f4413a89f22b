"""Trains the encoders of Rooms, measures their transfer, and compares every measure with it."""
