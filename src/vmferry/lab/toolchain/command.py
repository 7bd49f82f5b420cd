"""Runs one short external command and turns its failure into an error that says what to do."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from vmferry.core.errors import Broken

#: seconds; the slowest is a download of some 45 MB
TIMEOUT_S = 900.0


def output_of(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None, fix: str) -> str:
    """Return a command's standard output.

    Args:
        argv: the command.
        env: variables added to the environment; the locale is always C.
        cwd: the directory to run in.
        fix: what a person should do when it fails.

    Raises:
        Broken: the command is missing or no program, failed, or took longer than TIMEOUT_S;
            carries the last lines it wrote.
    """
    full_env = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            argv, env=full_env, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise Broken(f"cannot run {argv[0]}: {error.strerror}", fix=fix) from error
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{' '.join(argv[:3])} took more than {TIMEOUT_S:.0f} s", fix=fix, retry=True) from error
    if done.returncode != 0:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise Broken(f"{' '.join(argv[:3])} ended with exit code {done.returncode}: {tail}", fix=fix)
    return done.stdout
