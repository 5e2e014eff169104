"""Runs the commands of the README's section on guests in a terminal, as a user does who types in the shell of the guest."""

import os
import pty
import sys

# What the terminal shows, and what the user types then. Each follows the one before.
DIALOG = [
    (b"\nhello\r\n", b""),
    (b"# ", b"echo a shell in $(uname -s)\r"),
    (b"a shell in Linux\r\n", b"exit\r"),
]

pid, terminal = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "-euo", "pipefail", "-c", sys.argv[1]])

shown = b"\n"
steps = iter(DIALOG)
step = next(steps)
while True:
    try:
        output = os.read(terminal, 1 << 16)
    except OSError:
        # All programs have closed the terminal.
        break
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    shown += output
    while step and step[0] in shown:
        shown = shown[shown.index(step[0]) + len(step[0]) :]
        os.write(terminal, step[1])
        step = next(steps, None)

code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if step:
    print(f"the terminal did not show {step[0]!r}", file=sys.stderr)
sys.exit(code or bool(step))
