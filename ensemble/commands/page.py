"""The command `ens page`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.commands.options import PATH, conflict, json_option, progress_options
from ensemble.commands.output_paths import FOLDER
from ensemble.terminal import TERMINAL, show

if TYPE_CHECKING:
    from ensemble.page.site import Site


@click.command(short_help="Write a web page that runs the ensemble")
@click.argument("source", metavar="RECIPE", type=PATH)
@click.option("--models", type=PATH, multiple=True, help="Models of the recipe or folders of them; repeatable.")
@click.option("-o", "folder", type=FOLDER, help="Folder to write the page to.")
@click.option("--title", help="Heading of the page.  [default: Classify a photograph]")
@click.option("--license", "license_name", help="License of the models, which the page names: CC-BY-4.0.")
@click.option("--check-images", type=PATH, help="Compare with ens submit on 16 images of this folder, not drawn ones.")
@click.option(
    "--runtime",
    type=PATH,
    help="The npm package onnxruntime-web: its file from npm pack, or its folder.  [default: fetched with npm]",
)
@click.option("--open", "opened", is_flag=True, help="Serve the page on this machine and open it; Ctrl-C ends that.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of --open.  [default: any free port]")
@progress_options
@json_option
def page(
    source: Path,
    models: tuple[Path, ...],
    folder: Path | None,
    title: str | None,
    license_name: str | None,
    check_images: Path | None,
    runtime: Path | None,
    opened: bool,
    port: int,
    as_json: bool,
) -> None:
    """Write a folder of static files: a page on which anyone drops or takes a photograph and sees the answer, the vote
    and each member's own answer. The models run in the browser; no photograph leaves the device.

    In place of a recipe, RECIPE may be a file of ens fuse --members, or a folder that this command wrote, to serve it
    again with --open.

    \b
    Example: ens page blend.json --models models -o site --open
    """
    from ensemble.blend.recipe import read_recipe
    from ensemble.errors import OptionError
    from ensemble.fuse.verify import CheckImages
    from ensemble.page import source as sources
    from ensemble.page.runtime import read_runtime
    from ensemble.page.server import require_port
    from ensemble.page.site import DEFAULT_TITLE, require_site_folder, write_site

    fusing = {"--models": models, "--license": license_name, "--check-images": check_images}
    if source.is_dir():
        writing = {"-o": folder, "--title": title, "--runtime": runtime}
        _refuse({**fusing, **writing}, f"{source} is a folder, to be served as it is with --open")
        if not opened:
            raise OptionError("E204", f"{source} is a folder", hint="serve a page with --open, or give a recipe")
        _serve(source, port, None, as_json=as_json)
        return
    if folder is None:
        raise OptionError("E204", "the folder to write the page to is missing", hint="name it with -o, such as -o site")
    if opened:
        require_port(port)
    # whatever can be wrong with the input is found before npm is asked and before models are fused
    recipe = read_recipe(source) if sources.is_recipe(source) else None
    if recipe is None:
        _refuse(fusing, f"{source} is not a recipe, and these are for a recipe")
        fused = sources.read_fused_file(source)
    elif not models:
        raise OptionError("E204", "the models of the recipe are missing", hint="name them with --models")
    else:
        sources.require_page_members(recipe, models)
        CheckImages(check_images).require()
    require_site_folder(folder)
    web = read_runtime(runtime)
    if recipe is not None:
        images = CheckImages(check_images)
        fused = sources.fuse_for_page(recipe, models, images=images, license_name=license_name, listener=TERMINAL)
    site = write_site(fused, folder, web, title=title or DEFAULT_TITLE, listener=TERMINAL)
    if opened:
        _serve(folder, port, site, as_json=as_json)
    else:
        show(site.as_dict(), site.render(), as_json=as_json)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse options that would have no effect."""
    if found := [name for name, value in options.items() if value not in (None, ())]:
        raise conflict(f"{why}: {', '.join(found)}")


def _serve(folder: Path, port: int, site: Site | None, *, as_json: bool) -> None:
    """Serve the folder until Ctrl-C, and open the page in the browser that the system has for pages.

    ``site`` is what was written just now, whose facts are printed with the address.
    """
    import webbrowser

    from ensemble.page.server import address_of, open_server

    TERMINAL.close()  # a server has no progress
    with open_server(folder, port) as server:
        address = address_of(server)
        facts, lines = ({}, "") if site is None else (site.as_dict(), f"{site.render()}\n")
        show({**facts, "address": address}, f"{lines}{address} (Ctrl-C ends)", as_json=as_json)
        webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to end it, and no fault
            TERMINAL.close()
