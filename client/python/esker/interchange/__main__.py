"""What `esker save` and `esker restore` leave to Python: the formats that only torch reads and writes.

Not meant to be typed: the program `esker` starts it, and has checked the options. Output and exit codes are the program's.
"""

import argparse
import json
import signal
import sys
import time
import warnings
from typing import Any

from esker import interchange
from esker.interchange import native
from esker.interchange.exit_codes import exit_code


def main(arguments: list[str]) -> int:
    """Runs a command; the process's exit code."""
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    result: dict[str, Any] = {}
    code = 0
    try:
        (_save if options.command == "save" else _restore)(options, result, began)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        code, name = exit_code(error)
        line = " ".join(str(error).split()) or type(error).__name__
        if name == "unreachable":
            line += " (--server or ESKER_SERVER names another)"
        print(f"esker: {line}", file=sys.stderr)
        result["error"] = {"code": name, "exit_code": code, "message": line}
    if options.json:
        print(json.dumps(result, indent=2))
    return code


def _end(number: int, _: object) -> None:
    """So that what is unfinished is removed on the way out."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esker.interchange", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    save, restore = commands.add_parser("save"), commands.add_parser("restore")
    for command in (save, restore):
        command.add_argument("checkpoint")
        command.add_argument("--server", required=True)
        command.add_argument("--timeout-ms", type=int, required=True)
        command.add_argument("--json", action="store_true")
        command.add_argument("--force", action="store_true")
    save.add_argument("path")
    save.add_argument("--compress", choices=["none", "planes", "zstd", "auto"], default="none")
    save.add_argument("--incarnation", default="")
    restore.add_argument("--to", required=True)
    restore.add_argument("--format", required=True)
    restore.add_argument("--from-rank", type=int)
    return parser


def _save(options: argparse.Namespace, result: dict[str, Any], began: float) -> None:
    run, step = options.checkpoint.rsplit("@", 1)
    info = interchange.save(
        options.server,
        run,
        int(step),
        options.path,
        force=options.force,
        compression=options.compress,
        incarnation=options.incarnation,
        connect_timeout=options.timeout_ms / 1000,
    )
    seconds = time.monotonic() - began
    shown = native.show(options.server, run, info.step, options.timeout_ms / 1000)
    result |= {"checkpoint": shown["checkpoint"], "tensors": len(shown["tensors"]), "seconds": seconds}
    if not options.json:
        print(
            f"saved {run}@{step}: {result['tensors']} tensors, {_size(info.raw_bytes)} in {info.world_size} parts, {_size(info.stored_bytes)} stored,"
            f" {_size(info.new_stored_bytes)} of it new; {_speed(info.raw_bytes, seconds)}"
        )


def _restore(options: argparse.Namespace, result: dict[str, Any], began: float) -> None:
    run, step = options.checkpoint.rsplit("@", 1)
    restored = interchange.restore(
        options.server,
        run,
        None if step == "latest" else int(step),
        options.to,
        format=options.format,
        from_rank=options.from_rank,
        force=options.force,
        connect_timeout=options.timeout_ms / 1000,
    )
    seconds = time.monotonic() - began
    result |= {**vars(restored), "seconds": seconds}
    if options.json:
        return
    print(
        f"restored {run}@{restored.step}: {restored.tensors} tensors, {_size(restored.bytes)} into {restored.files[0]};"
        f" {_speed(restored.bytes, seconds)}"
    )
    if restored.items_left_out:
        print(f"{restored.items_left_out} byte items are not in it: only the job that saved them can read them (esker show --items lists them)")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.2f} {unit}"


def _speed(size: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch's, about what the user's file was made with
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    sys.exit(main(sys.argv[1:]))
