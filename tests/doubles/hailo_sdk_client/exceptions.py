"""What the real compiler raises, by name; where the real classes live is not known for all of them."""


class HailoSdkError(Exception):
    """Base of the double's own."""


class BadInputsShape(HailoSdkError):
    """Data of another shape than the network's input."""


class InvalidStateException(HailoSdkError):
    """A call before the one that it needs."""


class InvalidArgumentsException(HailoSdkError):
    """An argument that the call does not take."""


class BackendAllocatorException(HailoSdkError):
    """The network does not fit onto the chip."""


class AllocatorScriptParserException(HailoSdkError):
    """A model script that cannot be read."""


class ParsingWithRecommendationException(HailoSdkError):
    """A model that would parse if it were cut at other nodes."""
