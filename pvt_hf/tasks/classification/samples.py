from ...data.samples import ClassificationSample  # noqa: F401
