"""The Pi's side: serves the release that a channel names. Ships as one folder."""
