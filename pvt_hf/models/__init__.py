"""Everything that travels to a Hub repository: configurations, models, image processors. Flat, one file per idea."""

from ..registry import register


register()  # before the first file is imported, so that none is half imported when the Auto classes ask for it
