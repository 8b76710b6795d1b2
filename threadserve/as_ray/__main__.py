"""``python -m threadserve.as_ray SCRIPT [ARGS]``: runs a script that imports Ray, on threads."""

import sys

from threadserve.as_ray.script import main

if __name__ == "__main__":
    main(sys.argv[1:])
