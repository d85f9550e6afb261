"""The worked example: synthetic motions, a TCN-VAE trained on them, and its calibration windows.

Nothing here was recorded from a sensor. The example lets the chain run from weights to a served
release on a fresh checkout; a deployment brings its own weights and captured windows.
"""
