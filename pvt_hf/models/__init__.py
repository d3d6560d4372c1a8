"""Everything that travels to a Hub repository: configurations, models, image processors. Flat, one file per idea."""
