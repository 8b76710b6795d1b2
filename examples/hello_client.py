"""Call the app of hello.py over HTTP: `python hello_client.py [URL]`. Needs nothing but Python."""

import json
import sys
import urllib.request

# Straight to the server, whatever proxy the environment names.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def greet(url: str, language: str, name: str) -> str:
    body = json.dumps({"language": language, "name": name}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with opener.open(request, timeout=10) as response:
        greeting: bytes = response.read()
    return greeting.decode()


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    print(greet(url, "french", "Colette"))
    print(greet(url, "spanish", "Dora"))
