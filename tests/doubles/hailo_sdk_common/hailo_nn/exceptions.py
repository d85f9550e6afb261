"""What the real parser raises."""


class UnsupportedModelError(Exception):
    """A model that the parser does not take."""


class UnsupportedShuffleLayerError(UnsupportedModelError):
    """A reshape or transpose that the chip has not."""


class UnexpectedNodeError(UnsupportedModelError):
    """A node where none is expected."""
