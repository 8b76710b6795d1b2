# A router over HTTP: the ingress looks at the request and asks one of two deployments.
import starlette.requests
import starlette.responses
from ray import serve
from ray.serve.handle import DeploymentHandle


@serve.deployment
class German:
    def __init__(self, greeting: str):
        self.greeting = greeting

    def greet(self, name: str) -> str:
        return f"{self.greeting}, {name}"


@serve.deployment
def italian(name: str) -> str:
    return f"Ciao, {name}"


@serve.deployment(num_replicas=2)
class Router:
    def __init__(self, german: DeploymentHandle, italian: DeploymentHandle):
        self.german: DeploymentHandle = german.options(method_name="greet")
        self.italian = italian

    async def __call__(self, http_request: starlette.requests.Request):
        request = await http_request.json()
        language, name = request["language"], request["name"]
        if language == "german":
            return {"text": await self.german.remote(name)}
        if language == "italian":
            return {"text": await self.italian.remote(name)}
        return starlette.responses.PlainTextResponse("I speak german and italian.", status_code=400)


app = Router.bind(German.bind("Guten Tag"), italian.bind())
