# Section 1.4: how bound deployments become an app; names, shared nodes, where applications are found.
import ray
from ray import serve


def fact(name, value):
    print(f"- {name}: {value!r}", flush=True)


@serve.deployment
class Named:
    def __init__(self, *children, **more):
        self.children = [*children, *more.values()]

    async def names(self):
        mine = serve.get_replica_context().deployment
        return [mine, *[await child.names.remote() for child in self.children]]


class Config:
    def __init__(self, child, text):
        self.child = child
        self.text = text


@serve.deployment
class Nested:
    def __init__(self, config, listed, mapped, *, pair):
        self.found = [config.child, listed[0][0], mapped["inner"]["x"], pair[1]]
        self.text = config.text

    async def kinds(self):
        return self.text, [await child.names.remote() for child in self.found]


@serve.deployment
class Keeper:
    def __init__(self, values):
        self.values = values

    def read(self):
        return self.values


@serve.deployment
class Two:
    def __init__(self, left, right):
        self.left, self.right = left, right

    async def same(self):
        ids = [await each.tag.remote() for each in (self.left, self.right)]
        return ids[0] == ids[1], self.left.deployment_name, self.right.deployment_name


@serve.deployment
class Tagged:
    def tag(self):
        return serve.get_replica_context().replica_tag


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
handle = serve.run(Named.bind(Named.bind(), Named.bind(Named.bind()), last=Named.bind()), route_prefix=None)
fact("names of one class", handle.names.remote().result())

application = Nested.bind(
    Config(Named.options(name="attribute").bind(), "kept"),
    [(Named.options(name="listed").bind(),)],
    {"inner": {"x": Named.options(name="mapped").bind()}},
    pair=(1, Named.options(name="paired").bind()),
)
handle = serve.run(application, route_prefix=None)
fact("applications are found in", handle.kinds.remote().result())

values = [1, [2]]
application = Keeper.bind(values)
values.append(3)
handle = serve.run(application, route_prefix=None)
values[1].append(4)
fact("bind arguments are copies", handle.read.remote().result())

shared = Tagged.bind()
handle = serve.run(Two.bind(shared, shared), route_prefix=None)
fact("a shared node is one deployment", handle.same.remote().result())
handle = serve.run(Two.bind(Tagged.bind(), Tagged.bind()), route_prefix=None)
fact("two nodes are two", handle.same.remote().result())
fact("deployments of the app", sorted(serve.status().applications["default"].deployments))
serve.shutdown()
