"""What goes wrong with input, one class a cause; each message says what must hold, what came and the next step."""


class SuperstError(Exception):
    """Base of every error that the user's input, machine or files caused (exit code 2 of the command line)."""


class SlideError(SuperstError, OSError):
    """A slide or image file cannot be opened or decoded."""


class ResolutionError(SuperstError, ValueError):
    """A resolution (mpp) is missing, impossible, or does not fit another one."""


class AssayError(SuperstError, ValueError):
    """A counts table, spot table or scale-factor file is corrupt, incomplete or not raw counts."""


class AlignmentError(SuperstError, ValueError):
    """Spots and slide do not lie in the same frame."""


class ShapeError(SuperstError, ValueError):
    """Arrays that belong together differ in shape."""


class StoreError(SuperstError, OSError):
    """A section or posterior-maps store cannot be read or written."""


class RunError(SuperstError, ValueError):
    """A run folder, its options, genes or covariates do not fit the input."""


class TrainingError(SuperstError, ValueError):
    """Training cannot go on: NaN or infinite loss, or one of its processes was killed."""
