import pytest

from server import Server


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server.up()
    server.remove()
