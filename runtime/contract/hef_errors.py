"""Why a file is not a HEF that can be used: one error for each kind, its code said in ``/healthz``."""

from __future__ import annotations

from runtime.contract.errors import PipelineError


class HefError(PipelineError):
    """A file that is not a HEF, or not one that can be used here."""

    code = "hef"


class HefUnreadableError(HefError):
    """The system does not give the file's bytes."""

    code = "hef_unreadable"


class HefShortError(HefError):
    """Empty, or too short to be any HEF."""

    code = "hef_short"


class HefTextError(HefError):
    """Text in place of a HEF: a dummy, a page, a message."""

    code = "hef_text"


class HefJsonError(HefError):
    """JSON in place of a HEF."""

    code = "hef_json"


class HefPointerError(HefError):
    """A Git LFS pointer in place of a HEF."""

    code = "hef_lfs_pointer"


class HefMagicError(HefError):
    """Bytes that do not begin as a HEF does."""

    code = "hef_magic"


class HefVersionError(HefError):
    """A header version that this reader does not know."""

    code = "hef_version"


class HefHeaderError(HefError):
    """Header fields that contradict one another, or reserved ones that say something."""

    code = "hef_header"


class HefTruncatedError(HefError):
    """Fewer bytes than the header says."""

    code = "hef_truncated"


class HefOverlongError(HefError):
    """More bytes than the header says, or than any HEF of ours has."""

    code = "hef_overlong"


class HefChecksumError(HefError):
    """The checksum in the header is not the one of the bytes."""

    code = "hef_checksum"


class HefMalformedError(HefError):
    """A container that is whole, around a description that cannot be read."""

    code = "hef_malformed"


class HefNoNetworkError(HefError):
    """A description without a network group."""

    code = "hef_no_network"


class HefArchitectureError(HefError):
    """Compiled for another chip."""

    code = "hef_architecture"


class HefInterfaceError(HefError):
    """Other inputs or outputs than the encoder's."""

    code = "hef_interface"


class HailoVersionError(HefError):
    """A HailoRT that does not drive the chip, or does not read the file."""

    code = "hailo_version"
