"""`benchmark.py serve`: waiting for the server, and the load of several clients."""

from unittest import mock

import pytest

from cifs_tf.benchmarks import serve


def test_a_server_that_starts_slowly_is_waited_for(monkeypatch):
    """It refuses a connection, then takes longer than a request may, then answers."""
    urlopen = mock.Mock(side_effect=[ConnectionRefusedError(), TimeoutError(), None])
    monkeypatch.setattr(serve.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(serve.time, "sleep", lambda seconds: None)
    serve._wait_for("http://127.0.0.1:1", mock.Mock(**{"poll.return_value": None}))
    assert urlopen.call_count == 3


def test_a_server_that_ended_is_not_waited_for():
    with pytest.raises(RuntimeError, match="did not start"):
        serve._wait_for("http://127.0.0.1:1", mock.Mock(**{"poll.return_value": 1}))


def test_every_request_of_every_client_is_counted():
    """One request of each before the clock starts."""
    clients = [mock.Mock(), mock.Mock()]
    found = serve.measure_load(clients, 0.05)
    assert found["requests"] == sum(client.call_count for client in clients) - len(clients) > 0
    assert 0 <= found["p50_ms"] <= found["p99_ms"]


def test_clients_beside_the_others_ask_and_are_not_counted():
    client, other = mock.Mock(), mock.Mock()
    found = serve.measure_load([client], 0.05, [other])
    assert found["requests"] == client.call_count - 1
    assert other.call_count > 1
    with pytest.raises(ValueError, match="broken"):
        serve.measure_load([client], 0.05, [mock.Mock(side_effect=ValueError("broken"))])


def test_a_request_that_fails_ends_the_benchmark():
    with pytest.raises(ValueError, match="broken"):
        serve.measure_load([mock.Mock(side_effect=ValueError("broken"))], 0.05)
