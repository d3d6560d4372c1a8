from ...data.streams import open_stream as open_classification_stream  # noqa: F401
