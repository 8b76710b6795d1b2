"""Serve a composed app over HTTP: a router that asks one responder per language.

    threadserve run hello:language_classifier

and, in another terminal, `python hello_client.py`, or

    curl -d '{"language": "spanish", "name": "Dora"}' http://127.0.0.1:8000/
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import threadserve as serve


# A deployment is a class or a function plus options. Of this one there will be three replicas, three
# instances of the class; whichever is free takes the next call.
@serve.deployment(num_replicas=3)
class SpanishResponder:
    def say_hello(self, name: str) -> str:
        return f"Hola {name}"


@serve.deployment
class FrenchResponder:
    def say_hello(self, name: str) -> str:
        return f"Bonjour {name}"


# The ingress: what HTTP reaches. It is given handles to the others and calls them like local objects, but for
# `.remote`, which returns at once; the answer comes with `await`.
@serve.deployment
class LanguageClassifier:
    def __init__(
        self, spanish_responder: serve.DeploymentHandle[Any], french_responder: serve.DeploymentHandle[Any]
    ) -> None:
        self.responders = {"spanish": spanish_responder, "french": french_responder}

    async def __call__(self, http_request: Request) -> str | Response:
        request = await http_request.json()
        responder = self.responders.get(request["language"])
        if responder is None:
            return PlainTextResponse(f"I speak {' and '.join(self.responders)} only.", status_code=400)
        greeting: str = await responder.say_hello.remote(request["name"])
        return greeting


# `bind` runs nothing yet: it says which deployment gets which arguments. A bound deployment among the
# arguments becomes a handle.
language_classifier = LanguageClassifier.bind(SpanishResponder.bind(), FrenchResponder.bind())
