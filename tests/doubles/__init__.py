"""Doubles of what cannot be installed here; reached by a path of their own, never by an import."""
