"""The command `ens page`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.commands.options import PATH, json_option
from ensemble.terminal import TERMINAL, show


@click.command(short_help="Write a web page that runs the ensemble")
@click.argument("model", metavar="ENSEMBLE", type=PATH)
@click.option("-o", "folder", type=PATH, help="Folder to write the page to.")
@click.option("--title", help="Heading of the page.  [default: Classify a photograph]")
@click.option(
    "--runtime",
    type=PATH,
    help="The npm package onnxruntime-web: its file from npm pack, or its folder.  [default: fetched with npm]",
)
@click.option("--open", "opened", is_flag=True, help="Serve the page on this machine and open it; Ctrl-C ends that.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of --open.  [default: any free port]")
@json_option
def page(
    model: Path,
    folder: Path | None,
    title: str | None,
    runtime: Path | None,
    opened: bool,
    port: int,
    as_json: bool,
) -> None:
    """Write a folder of static files: a page on which anyone drops or takes a photograph and sees the answer, the vote
    and each member's say. The models run in the browser; no photograph leaves the device.

    ENSEMBLE is a fused ensemble.onnx, or a folder that this command wrote, to serve it again with --open.

    \b
    Example: ens page ensemble.onnx -o site --open
    """
    from ensemble.errors import OptionError
    from ensemble.page.runtime import read_runtime
    from ensemble.page.site import DEFAULT_TITLE, read_model_bytes, require_site_folder, write_site

    if model.is_dir():
        if folder is not None or not opened:
            raise OptionError("E204", f"{model} is a folder: it can be served with --open, and -o is not for that")
        _serve(model, port, as_json=as_json)
        return
    if folder is None:
        raise OptionError("E204", "the folder to write the page to is missing", hint="name it with -o, such as -o site")
    data = read_model_bytes(model)
    require_site_folder(folder)
    web = read_runtime(runtime)
    site = write_site(data, folder, web, title=DEFAULT_TITLE if title is None else title, path=model)
    show(site.as_dict(), site.render(), as_json=as_json)
    if opened:
        _serve(folder, port, as_json=as_json)


def _serve(folder: Path, port: int, *, as_json: bool) -> None:
    """Serve the folder until Ctrl-C, and open the page in the browser that the system has for pages."""
    import webbrowser

    from ensemble.page.server import address_of, open_server

    with open_server(folder, port) as server:
        address = address_of(server)
        show({"address": address}, f"{address} (Ctrl-C ends)", as_json=as_json)
        webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to end it, and no fault
            TERMINAL.close()
