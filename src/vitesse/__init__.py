"""Vitesse makes transformer vision models fast and proves that they are still right."""

from vitesse._version import __version__

__all__ = ["__version__"]
