"""`python -m glus app`: the page in a browser."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from glus.app.clips import bundled_clips
from glus.app.jobs import Workbench
from glus.app.models import Models
from glus.app.uploads import Limits
from glus.errors import InputError
from glus.inference.infer_command import (
    HelpFormatter,
    add_model_arguments,
    inference_changes,
    model_settings,
)

logger = logging.getLogger(__name__)

AUTH_VARIABLE = "GLUS_APP_AUTH"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m glus app",
        description="A page in the browser: upload a video, write sentences, look at the masks and download them.",
        formatter_class=HelpFormatter,
    )
    add_model_arguments(p)
    p.add_argument("--models", nargs="+", default=[], metavar="FOLDER", help="further checkpoints to choose from")
    p.add_argument("--selector", metavar="FOLDER", help="key-frame selector (KFS), to start from key frames")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is for everyone")
    p.add_argument("--port", type=int, help="default: the first free one from 7860")
    p.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help=f"ask for a password; or in ${AUTH_VARIABLE}, where other users of the machine do not see it",
    )
    p.add_argument("--clips", type=int, default=3, help="clips of the generator to offer")
    group = p.add_argument_group("limits for a visitor")
    for limit in fields(Limits):
        group.add_argument(f"--max_{limit.name}", type=int, default=limit.default, metavar="N", help="at most")
    return p


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    auth = credentials(args.auth or os.environ.get(AUTH_VARIABLE))
    limits = Limits(**{limit.name: getattr(args, f"max_{limit.name}") for limit in fields(Limits)})
    if auth is None and not is_local(args.host):
        logger.warning("%s can be reached from other machines, and anyone may use it: see --auth", args.host)
    inference = inference_changes(args)
    Page = page_class()
    # SIGTERM ends it as Ctrl-C does, so that nothing of the visitors stays on the disk
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="glus-app-") as base:
        root, clips = Path(base) / "served", Path(base) / "clips"
        root.mkdir(mode=0o700)
        clips.mkdir()
        workbench = Workbench(root, Models(offered(args), args.selector, args.memory_budget), limits)
        try:
            page = Page(workbench, bundled_clips(clips, args.clips), inference)
            address = page.launch(args.host, args.port, auth, block=False)
            sys.stdout.write(f"GLUS is at {address} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            page.blocks.block_thread()
        except OSError as error:
            raise InputError(f"cannot listen on {args.host}, port {args.port or '7860 and up'}: {error}") from None
        finally:
            workbench.close()
    return 0


def page_class() -> Any:
    """`glus.app.page.Page`; gradio is an extra."""
    try:
        from glus.app.page import Page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "pandas"):
            raise
        raise InputError("the page needs gradio: pip install -e '.[app]'") from None
    return Page


def offered(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The checkpoints of the command line by the last part of their names."""
    settings = model_settings(args, None if args.device == "auto" else args.device)
    models: dict[str, dict[str, Any]] = {}
    for version in (args.version, *args.models):
        name = version.rstrip("/").rsplit("/", 1)[-1]
        if name in models:
            raise InputError(f"two checkpoints are called {name}; rename a folder")
        models[name] = {**settings, "version": version}
    return models


def credentials(text: str | None) -> tuple[str, str] | None:
    """User and password of `user:password`."""
    if not text:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise InputError("the login must be given as user:password")
    return user, password


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
