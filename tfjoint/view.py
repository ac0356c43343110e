"""Write a page that shows shapes or results in a browser.

    python -m tfjoint.view shape.npz
    python -m tfjoint.view runs/direct/results.json --output=page.html

The page is one file that needs no network. It turns the voxels under the mouse: prediction, truth
and their difference, at every rate and number of views that the file holds. Of results it shows a
table; the shapes beside it are those that `tfjoint.evaluate --examples=N` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfjoint import entry, files, page, report
from tfjoint.errors import UserError
from tfjoint.gallery import read_gallery


class ViewError(UserError):
    """Something that there is no page of."""


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("output", "", 'page to write; "" is the input\'s name with .html')


def view(input_path: Path, output_path: Path) -> None:
    """Write the page of an .npz file of shapes, or of results, to `output_path`.

    Raises:
      ViewError: the input is neither .npz nor .json, or the output is not .html.
      GalleryError, ResultsError, PageError: the input does not hold what it should.
    """
    if output_path.suffix.lower() not in (".html", ".htm"):
        raise ViewError(f"a page is an .html file; received {str(output_path)!r}")
    text = page_of(input_path)
    with files.replacing(output_path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_of(path: Path) -> str:
    """Return the page; raises as `view`."""
    shows = {".npz": _shapes, ".json": _results}.get(path.suffix.lower())
    if shows is None:
        raise ViewError(
            f"a page shows an .npz file of shapes or a .json file of results; received "
            f"{str(path)!r}: give one of these"
        )
    return shows(path)


def _shapes(path: Path) -> str:
    gallery = read_gallery(path)
    if gallery.occupancy is None:
        raise ViewError(
            f"{path} holds decoded views of a codec alone: a page shows shapes, and the results "
            "file beside it has what was measured of the views"
        )
    return page.render(gallery, title=gallery.title or path.name)


def _results(path: Path) -> str:
    results = report.read_results(path)
    examples = report.examples_path(path)
    gallery, notes = None, []
    if not examples.is_file():
        notes.append("To see shapes, evaluate with --examples=10.")
    else:
        gallery = read_gallery(examples)
        made = gallery.title, gallery.weights_sha256
        if made != (report.title(results), results["rows"][0].get("weights_sha256")):
            notes.append(f"{examples.name} is of other results: evaluate with --examples=10 again.")
            gallery = None
        elif gallery.occupancy is None:
            notes.append(f"{examples.name} holds decoded views of a codec alone, and no shapes.")
            gallery = None
    try:
        return page.render(gallery, results, title=report.title(results), notes=notes)
    except UserError:
        raise
    except report.WRONG_CONTENT as error:
        raise report.ResultsError.wrong(path, report.fault(results, error)) from error


def main(argv: Sequence[str]) -> None:
    """Write the page."""
    if len(argv) != 2:
        raise ViewError("give one file: python -m tfjoint.view INPUT --output=page.html")
    given = Path(argv[1])
    output = Path(flags.FLAGS.output or given.with_suffix(".html"))
    view(given, output)
    print(f"page: {output}, {output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    define_flags()
    entry.run(main, inputs=1)
