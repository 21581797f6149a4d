"""What is known of weaknesses in the installed packages: python -m helpers.audit, by pip-audit.

Exit code 1 where one is known. Where the package index cannot be asked, a line says so, and the exit code is 0.
"""

import json
import subprocess
import sys

ASKED = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--timeout", "5", "--format", "json"]


def read(told: str) -> tuple[list[str], int, int]:
    """(known weaknesses in words, packages that were asked about, packages that could not be) of pip-audit's answer."""
    packages = json.loads(told)["dependencies"]
    known = [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in {weakness['fix_versions'] or 'no version'}"
        for package in packages
        for weakness in package.get("vulns", ())
    ]
    skipped = sum("skip_reason" in package for package in packages)
    return known, len(packages) - skipped, skipped


def main() -> int:
    """Ask, and tell."""
    done = subprocess.run(ASKED, capture_output=True, text=True)
    try:
        known, asked, skipped = read(done.stdout)
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: the package index could not be asked: {last[:200]}")
        return 0
    print(f"audit: {len(known)} known weaknesses in {asked} packages; {skipped} could not be asked about")
    for line in known:
        print(line)
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
