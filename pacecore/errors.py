"""The base of every error that a user's input can cause; the command line prints it as one line."""

__all__ = ["PacecoreError"]


class PacecoreError(ValueError):
    """Names the file or option, the rule and the value."""
