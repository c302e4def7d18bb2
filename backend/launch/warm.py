"""`python -m backend.launch.warm`: compile the index kernels into the environment's cache, so that the first start does not wait.

Part of the install. Never fails it: without the cache the first start compiles by itself, only later.
"""

from __future__ import annotations

import os
import sys
import time

from backend.launch import cache


def main() -> int:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache.environment_folder()))
    began = time.monotonic()
    try:
        os.makedirs(os.environ["NUMBA_CACHE_DIR"], exist_ok=True)
        from backend.kvindex import kernels

        kernels.warm()
    except Exception as error:  # noqa: BLE001 - an edge: whatever the compiler or the folder does, the install goes on
        why = str(error).strip().splitlines() or [""]
        print(f"The index kernels were not compiled now ({type(error).__name__}: {why[0][:200]}); the first start will.", file=sys.stderr)
        return 0
    print(f"Index kernels compiled in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
