#!/usr/bin/env python3
"""Stands in for gcloud, sbatch, srun, xpk and docker: records its arguments, and plays what a test has written for it.

$STUB is a folder: calls.jsonl gets a line {"name", "argv"} for each call; script.json holds, for a command as it begins
("gcloud compute tpus queued-resources describe"), a list of [exit code, output] to be used up one by one; the last one
stays. A command that is not in it succeeds and says nothing.

$STUB/vm is the home of a machine: what gcloud's ssh and scp ask for is done there for real. [255, "PREEMPTED", path]
takes it away, with what runs there and lies there, once the path exists, and only once.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(os.environ.get("STUB", "."))
VM = HERE / "vm"


def answer(command):
    """The next [exit code, output] that the script has for this command; the longest beginning that fits counts."""
    path = HERE / "script.json"
    script = json.loads(path.read_text()) if path.exists() else {}
    fitting = [key for key in script if command.startswith(key)]
    if not fitting:
        return None
    answers = script[max(fitting, key=len)]
    once = bool(answers) and len(answers[0]) > 2
    if not answers or once and not Path(answers[0][2]).exists():
        return None
    found = answers.pop(0) if once or len(answers) > 1 else answers[0]
    path.write_text(json.dumps(script))
    return found[:2]


def on_vm(argv):
    """What scp and ssh do, on a machine that is only a folder."""
    if "scp" in argv:
        source, target = [a for a in argv[argv.index("scp") + 1 :] if not a.startswith("--")]
        shutil.copy(source, VM / target.split(":")[1])
        return 0
    command = next(a for a in argv if a.startswith("--command=")).removeprefix("--command=")
    environment = os.environ | {"HOME": str(VM), "PATH": os.environ["VM_PATH"], "MMCL_VENV": str(VM / "venv")}
    return subprocess.run(["bash", "-c", command], cwd=VM, env=environment, stdin=subprocess.DEVNULL).returncode


def take_away():
    """The machine goes with all that runs on it and lies there, but for what it was installed with."""
    pid = VM / "mmcl/pid"
    if pid.exists():
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    for path in VM.iterdir():
        if path.name != "venv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main():
    """Records the call, and answers it."""
    name, argv = Path(sys.argv[0]).name, sys.argv[1:]
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (HERE / "calls.jsonl").open("a") as calls:
            calls.write(json.dumps({"name": name, "argv": argv}) + "\n")
        played = answer(" ".join([name, *argv]))
    if played is None and VM.exists() and {"ssh", "scp"} & set(argv):
        return on_vm(argv)
    code, output = played or (0, "")
    if output == "PREEMPTED":
        take_away()
    if output:
        print(output, file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
