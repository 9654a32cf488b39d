"""What a version's folder says of its model."""

import hashlib
import json

import pytest

from cifs_tf.serving.endpoint.models.loading import is_our_export


def card(content, **changes):
    files = {"model.onnx": {"sha256": hashlib.sha256(content).hexdigest()}}
    return json.dumps({"schema": 1, "files": files} | changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (card(b"model"), True),
        (card(b"another model"), False),
        (card(b"model", schema=2), False),
        (card(b"model", files={}), False),
        (card(b"model", files=[]), False),
        ("[]", False),
        ("{", False),
        (None, False),
    ],
)
def test_rows_are_known_not_to_mix_where_a_card_names_the_very_file(tmp_path, text, expected):
    (tmp_path / "model.onnx").write_bytes(b"model")
    if text is not None:
        (tmp_path / "model_card.json").write_text(text)
    assert is_our_export(tmp_path / "model.onnx") is expected
