"""Double: see ``exceptions``."""
