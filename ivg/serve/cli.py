"""`ivg serve`: flags, YAML and folders are checked before torch is imported, which takes seconds."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ivg.config.yaml_file import read_yaml
from ivg.errors import UserError, exit_on_user_error, require_module
from ivg.models.folders import require_folders
from ivg.run import console
from ivg.run.flags import FlagParser
from ivg.serve.settings import ServerSettings, settings_from_dict

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY_VARIABLE = "IVG_API_KEY"
_FLAGS = ("host", "port", "api_key")
_EXAMPLE = """\
config.yaml, beside base, pairs, values, engine and sampling as in ivg decode:
  guidance:
    - {name: ivg, token_guidance: implicit, chunk_guidance: explicit,
       num_beams: 4, num_successors: 4, chunk_length: 5}
    - {name: base}
  serve: {max_tokens: 1024, max_rows: 16, max_beta: 4}

clients choose a preset as model, and may send with each request
  extra_body={"guidance": {"beta": 0.5, "num_beams": 2}}

docs/serving.md says more. Exit codes: 0 stopped; 2 the configuration is wrong; 1 anything else
"""


def parse(argv: Sequence[str]) -> ServerSettings:
    """Read flags and the YAML file; obey `--quiet` and `--verbose`.

    Raises:
        UserError: an unknown flag or key, a value out of range, or one thing given twice.
    """
    parser = FlagParser(
        prog="ivg serve",
        usage="ivg serve --config FILE [KEY=VALUE ...] [--host NAME] [--port N] [--api_key KEY]",
        description="Serve guided decoding over OpenAI's HTTP interface.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file")
    parser.add_argument("--host", metavar="NAME", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="(8000); 0 takes a free one")
    parser.add_argument(
        "--api_key", metavar="KEY", help=f"what clients must send; ${KEY_VARIABLE} keeps it out of `ps`"
    )
    console.add_flags(parser, json=False)
    given = parser.read(argv)
    console.set_up(quiet=given.get("quiet", False), verbose=given.get("verbose", False))
    if "config" not in given:
        raise UserError("no configuration: give --config FILE.yaml")
    data = read_yaml(given["config"], given.get("overrides", []))
    return settings_from_dict(_with_flags(data, {name: given[name] for name in _FLAGS if name in given}))


def _with_flags(data: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    serve = data.get("serve") or {}
    if not isinstance(serve, dict):
        return data  # refused with the rest
    for name in flags:
        if name in serve:
            raise UserError(f"serve.{name} is given both in the YAML file and as a flag; give one of them")
    if os.environ.get(KEY_VARIABLE) and "api_key" not in {**serve, **flags}:
        flags = {**flags, "api_key": os.environ[KEY_VARIABLE]}
    return {**data, "serve": {**serve, **flags}}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run `ivg serve` until it is asked to stop."""
    settings = parse(sys.argv[1:] if argv is None else argv)
    run = settings.run
    require_folders(run.base, run.pairs, run.values)
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require_module(module, "serve", "ivg serve")
    with _bind(settings.serve.host, settings.serve.port) as listener:
        from ivg.serve.starting import plan, start

        app = start(settings, plan(settings))
        _serve(app, settings, listener)
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before models are loaded; nobody is let in yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:  # socket.gaierror is one
        listener.close()
        raise UserError(f"serve: cannot listen on {host}:{port}: {error.strerror}; give another") from error
    return listener


def _serve(app: FastAPI, settings: ServerSettings, listener: socket.socket) -> None:
    import uvicorn

    host, port = listener.getsockname()[:2]

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Say where to reach the server once it answers."""
            await super().startup(sockets=sockets)
            names = ", ".join(settings.presets)
            console.note(f"serving {names} on http://{host}:{port}/v1")
            sys.stderr.flush()

    config = uvicorn.Config(
        app,
        log_level="info" if console.is_verbose() else "warning",
        access_log=console.is_verbose(),
        use_colors=False if os.environ.get("NO_COLOR") else None,
        timeout_graceful_shutdown=max(1, round(settings.serve.stop_timeout)),
    )
    # Uvicorn ends gracefully on these and then raises them again, for whoever stood there before.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    asyncio.run(Server(config).serve(sockets=[listener]))
