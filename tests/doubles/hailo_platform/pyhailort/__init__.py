"""As in the real package: nothing of its own."""
