"""What Triton's client asks of a server, in an environment of its own: `test_other_clients.py` starts it.

python triton_client.py REST_HOST:PORT GRPC_HOST:PORT IMAGE.png      prints "asked" if every answer was right
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

MODEL, SIDE = "m", 8
IMAGES = np.random.default_rng(0).random((3, SIDE, SIDE, 3)).astype(np.float32)


def ask(client, package, array, name, datatype, *, signature="", outputs=(), **options):
    given = package.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, **({"binary_data": options.pop("binary")} if "binary" in options else {}))
    wanted = [package.InferRequestedOutput(output) for output in outputs] or None
    parameters = {"signature_name": signature} if signature else None
    return client.infer(MODEL, [given], outputs=wanted, request_id="7", parameters=parameters, **options)


def check(client, package, as_dict):
    """Ask everything that both protocols have; return the probabilities."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("nobody")
    assert as_dict(client.get_server_metadata)["name"] == "cifs-tf"
    described = as_dict(client.get_model_metadata, MODEL)
    assert described["platform"] == "tensorflow_savedmodel"
    assert [(tensor["name"], tensor["datatype"]) for tensor in described["inputs"]] == [("image", "FP32")]

    answer = ask(client, package, IMAGES, "image", "FP32")
    probabilities = answer.as_numpy("probabilities")
    assert probabilities.shape == (3, 5)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    only = ask(client, package, IMAGES, "image", "FP32", outputs=["logits"])
    assert only.as_numpy("probabilities") is None
    np.testing.assert_array_equal(only.as_numpy("logits"), answer.as_numpy("logits"))

    explained = ask(client, package, IMAGES, "image", "FP32", signature="explain")
    assert explained.as_numpy("disagreement").shape == (3,)
    np.testing.assert_allclose(explained.as_numpy("probabilities"), probabilities, atol=1e-5)
    file = np.array([Path(sys.argv[3]).read_bytes()], object)
    assert ask(client, package, file, "image_bytes", "BYTES", signature="encoded").as_numpy("logits").shape == (1, 5)

    for model, array, signature in (("nobody", IMAGES, ""), (MODEL, IMAGES[0], ""), (MODEL, IMAGES, "nope")):
        given = package.InferInput("image", list(array.shape), "FP32")
        given.set_data_from_numpy(array)
        refused = ""
        try:
            client.infer(model, [given], parameters={"signature_name": signature} if signature else None)
        except InferenceServerException as error:
            refused = error.message()
        assert refused, (model, array.shape, signature)
    return probabilities


def main():
    """Ask over both protocols, over REST in JSON, in binary form and packed."""
    with tritonclient.http.InferenceServerClient(sys.argv[1], concurrency=4) as client:
        found = [check(client, tritonclient.http, lambda call, *arguments: call(*arguments))]
        for options in ({"binary": False}, {"request_compression_algorithm": "gzip"}):
            answer = ask(client, tritonclient.http, IMAGES, "image", "FP32", **options)
            found.append(answer.as_numpy("probabilities"))
        wanted = [tritonclient.http.InferRequestedOutput("probabilities", binary_data=False)]
        given = tritonclient.http.InferInput("image", list(IMAGES.shape), "FP32")
        given.set_data_from_numpy(IMAGES)
        found.append(client.infer(MODEL, [given], outputs=wanted).as_numpy("probabilities"))
    with tritonclient.grpc.InferenceServerClient(sys.argv[2]) as client:
        found.append(check(client, tritonclient.grpc, lambda call, *arguments: call(*arguments, as_json=True)))
    for probabilities in found[1:]:
        np.testing.assert_allclose(probabilities, found[0], atol=1e-6)
    print("asked")


if __name__ == "__main__":
    main()
