"""All benchmarks in turn, each in a process of its own: `make bench`. Ends with 1 when a target is missed."""

import subprocess
import sys

BENCHMARKS = (
    "bench.start_cost",
    "bench.cluster_start_cost",
    "bench.many_projects",
    "bench.read_endpoints",
    "bench.event_log",
    "bench.agent",
)


def main() -> int:
    """Run them; each prints its rows and says by its exit code whether its targets were met."""
    missed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", name], check=False).returncode:
            missed.append(name)
    print(f"== {'missed: ' + ', '.join(missed) if missed else 'every target met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
