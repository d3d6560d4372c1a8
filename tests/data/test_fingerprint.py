"""
The fingerprint of a stream names its data, wherever they lie.

    pytest tests/data/test_fingerprint.py
"""

from pvt_hf.data.fingerprint import stream_fingerprint
from pvt_hf.tasks.classification.streams import open_classification_stream

from ..support.training_runs import make_photos


def test_fingerprints_tell_data_apart(tmp_path):
    photos = make_photos(tmp_path / "photos", 16)
    stream = open_classification_stream(str(photos))
    assert stream_fingerprint(stream) == stream_fingerprint(open_classification_stream(str(photos)))
    copy = tmp_path / "elsewhere" / "photos"
    for file in photos.rglob("*.jpg"):
        (copy / file.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / file.parent.name / file.name).write_bytes(file.read_bytes())
    assert stream_fingerprint(open_classification_stream(str(copy))) == stream_fingerprint(stream)
    (copy / "leaf" / "3.jpg").rename(copy / "apple" / "new.jpg")
    assert stream_fingerprint(open_classification_stream(str(copy))) != stream_fingerprint(stream)
