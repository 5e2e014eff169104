"""Runs commands in a box, and copies files to a guest and out of it, through the client of the public API. The argument is the URL of a daemon."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from boxlite import ApiKeyCredential, Boxlite, BoxliteRestOptions, BoxOptions, ExecutionError
from boxlite import AlreadyExistsError, CopyOptions


def equal(actual, expected):
    if actual != expected:
        raise AssertionError(f"{actual!r} instead of {expected!r}")


async def text(stream):
    return "".join([part async for part in stream])


async def finish(execution):
    """Returns the stdout, the stderr and the exit code of an execution."""
    out, err = await asyncio.gather(text(execution.stdout()), text(execution.stderr()))
    return out, err, (await execution.wait()).exit_code


async def run_commands(runtime):
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

    command = await box.exec("sh", ["-c", "echo ready; exec sleep 1000"])
    # The client attaches in the background.
    equal(await anext(command.stdout()), "ready\n")
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


async def copy_files(runtime):
    box = await runtime.create(BoxOptions(image="guest"), name="guest")

    async def shell(script):
        out, err, code = await finish(await box.exec("sh", ["-c", script]))
        equal((err, code), ("", 0))
        return out

    async def refused(copy, text):
        try:
            await copy
        except Exception as error:
            assert text in str(error), error
        else:
            raise AssertionError("the copy was not refused")

    # The first command starts the box.
    equal(await shell("echo booted"), "booted\n")
    with tempfile.TemporaryDirectory() as dir:
        source = Path(dir, "source")
        source.joinpath("sub").mkdir(parents=True)
        source.joinpath("sub", "data").write_bytes(bytes(range(256)) * 4096)
        source.joinpath("script").write_text("echo ran")
        source.joinpath("script").chmod(0o751)
        source.joinpath("link").symlink_to("script")
        options = CopyOptions(recursive=True, overwrite=True, follow_symlinks=False)

        # To a new name, into a directory that exists, and its contents only.
        await box.copy_in(str(source), "/new", options)
        equal(await shell("sh /new/link; stat -c '%a %F' /new/script /new/sub"),
              "ran\n751 regular file\n755 directory\n")
        await box.copy_in(str(source), "/new", options)
        equal(await shell("sh /new/source/script"), "ran\n")
        await box.copy_in(f"{source}/.", "/contents", options)
        equal(await shell("sh /contents/script"), "ran\n")
        # A file, to a new name and into a directory.
        await box.copy_in(str(source / "script"), "/renamed", options)
        await box.copy_in(str(source / "script"), "/bin/", options)
        equal(await shell("sh /renamed; sh /bin/script"), "ran\nran\n")

        # The client extracts a directory below its name.
        data = source.joinpath("sub", "data").read_bytes()
        back = Path(dir, "back")
        await box.copy_out("/contents/sub", str(back), options)
        equal(back.joinpath("sub", "data").read_bytes(), data)
        await box.copy_out("/contents/sub/.", str(back), options)
        equal(back.joinpath("data").read_bytes(), data)
        file = Path(dir, "file")
        for target in file, back:
            await box.copy_out("/contents/script", str(target), options)
        equal((file.read_text(), back.joinpath("script").read_text()), ("echo ran", "echo ran"))
        await refused(box.copy_out("/nonexistent", str(file), options), "not found")
    await runtime.remove("guest", force=True)


async def main(url):
    key = ApiKeyCredential(os.environ["SHIMD_TOKEN"])
    runtime = Boxlite.rest(BoxliteRestOptions(url=url, credential=key))
    await run_commands(runtime)
    await copy_files(runtime)
    print("the client of the public API has run its commands and copied its files")


asyncio.run(main(sys.argv[1]))
sys.stdout.flush()
# The client aborts when the interpreter unloads it.
os._exit(0)
