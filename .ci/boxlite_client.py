"""Runs commands in a box through the client of the public API. The argument is the URL of a daemon."""

import asyncio
import os
import sys

from boxlite import ApiKeyCredential, Boxlite, BoxliteRestOptions, BoxOptions, ExecutionError
from boxlite import AlreadyExistsError


def equal(actual, expected):
    if actual != expected:
        raise AssertionError(f"{actual!r} instead of {expected!r}")


async def text(stream):
    return "".join([part async for part in stream])


async def finish(execution):
    """Returns the stdout, the stderr and the exit code of an execution."""
    out, err = await asyncio.gather(text(execution.stdout()), text(execution.stderr()))
    return out, err, (await execution.wait()).exit_code


async def main(url):
    key = ApiKeyCredential(os.environ["SHIMD_TOKEN"])
    runtime = Boxlite.rest(BoxliteRestOptions(url=url, credential=key))
    box = await runtime.create(BoxOptions(image="idle"), name="client")

    # The first command starts the box.
    script = "echo $COLOR; pwd; echo err >&2; exit 3"
    command = await box.exec("sh", ["-c", script], [("COLOR", "blue")], cwd="/usr")
    equal(await finish(command), ("blue\n/usr\n", "err\n", 3))

    command = await box.exec("seq", ["200000"])
    out, _, code = await finish(command)
    equal((len(out), code), (1288895, 0))

    command = await box.exec("cat")
    stdin = command.stdin()
    await stdin.send_input(b"hello\n")
    await stdin.close()
    equal(await finish(command), ("hello\n", "", 0))

    # At once, so that the server often handles it before the client attaches.
    for _ in range(20):
        command = await box.exec("sleep", ["1000"])
        await command.kill()
        equal((await command.wait()).exit_code, -9)

    command = await box.exec("sleep", ["1000"])
    await command.signal(15)
    equal((await command.wait()).exit_code, -15)

    command = await box.exec("sleep", ["1000"], timeout_secs=0.2)
    equal((await command.wait()).exit_code, -9)

    script = "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.01; done"
    command = await box.exec("sh", ["-c", script], tty=True)
    output = command.stdout()
    equal((await anext(output)).split(), ["24", "80"])
    await command.resize_tty(50, 100)
    equal((await text(output)).split(), ["50", "100"])
    equal((await command.wait()).exit_code, 5)

    command = await box.exec("sleep", ["1000"])
    try:
        await box.attach(command.id())
        raise AssertionError("a second client is attached")
    except AlreadyExistsError:
        pass
    await command.kill()

    try:
        await box.exec("/nonexistent")
        raise AssertionError("/nonexistent was started")
    except ExecutionError as error:
        assert "not found" in str(error), error

    await runtime.remove("client", force=True)
    print("the client of the public API has run its commands")


asyncio.run(main(sys.argv[1]))
sys.stdout.flush()
# The client aborts when the interpreter unloads it.
os._exit(0)
