"""Tasks and actors: functions and classes called as ``serve.remote``, on the replicas and routers of deployments."""
