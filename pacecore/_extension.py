"""Loads the compiled part, pacecore._C, and says what to do where it cannot be loaded."""

from pathlib import Path
from types import ModuleType

from pacecore.errors import PacecoreError

__all__ = ["REBUILD", "ExtensionError", "extension"]

REBUILD = "pip install --force-reinstall --no-deps ."  # in the source folder


class ExtensionError(PacecoreError, ImportError):
    """The compiled part of pacecore is missing or does not load."""


def extension() -> ModuleType:
    """The module `pacecore._C`; importing it registers torch.ops.pacecore.

    Raises ExtensionError with the loader's reason and the line that rebuilds it. Nothing falls back
    in silence.
    """
    import torch  # noqa: F401  before _C, which finds libtorch loaded; here, as it takes seconds

    try:
        from pacecore import _C
    except ImportError as error:
        mend = f"rebuild it from the source folder with: {REBUILD}"
        editable = "pip install --no-deps -e ."
        package = Path(__file__).parent
        if (package.parent / "setup.py").is_file() and not any(package.glob("_C.*")):
            mend = f"start Python in another folder than the source's, {package.parent}"
        raise ExtensionError(
            f"pacecore's compiled part does not load: {error}; {mend}"
            f" (an editable install: {editable})"
        ) from error
    return _C
