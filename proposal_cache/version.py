"""Version of the installed distribution, which holds both proposal_cache and samcp."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version in the metadata of the installed distribution, or "0+unknown" if it is not installed."""
    try:
        return version("samcp")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "0+unknown"
