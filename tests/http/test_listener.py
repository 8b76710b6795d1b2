"""Taking a port."""

from __future__ import annotations

import pytest

from threadserve.http.listener import url_of


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::1", "http://[::1]:1")],
)
def test_where_clients_find_it(host: str, url: str) -> None:
    assert url_of(host, 1) == url
