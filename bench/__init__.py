"""Measurements: printed beside each other as ratios, with the machine named; never a test."""
