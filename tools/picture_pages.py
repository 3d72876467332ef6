# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/your_robot.md, from the pages that its commands made: `python tools/picture_pages.py tour/mower`

Needs `apt install chromium` and pillow (`.[video]`). Each picture is one part of a page, as a browser shows it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
MARGIN = 8  # pixels
PICTURES = {  # name: page, and CSS selector of the part
    "your-robot-commands": ("doctor.html", "#bag-0-commands"),
    "your-robot-terms": ("dataset.html", "#earned"),
    "your-robot-value": ("run/assess/assess.html", "#value"),
    "your-robot-told": ("run/assess/assess.html", "#told"),
    "your-robot-shadow": ("shadow.html", "#commands-run_00"),
    "your-robot-trial": ("trial/report.html", "#mower-path"),
}
# Plotly draws on load, so the part is taken out of the page afterwards.
SCRIPT = """<script>window.addEventListener('load', () => setTimeout(() => {{
  const part = document.querySelector({selector!r}), main = document.querySelector('main');
  if (part) main.replaceChildren(part.closest('.scroll') ?? part); else main.replaceChildren();
}}, 1000));</script></body>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, help="the folder of the tutorial's products")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--width", type=int, default=1000, help="of the browser's window, in pixels")
    options = parser.parse_args()
    for name, (page, selector) in PICTURES.items():
        picture = trim(photograph(options.pages / page, selector, options.width))
        if picture is None:
            sys.exit(f"{options.pages / page}: has no {selector}, or the browser drew nothing")
        path = options.out / f"{name}.png"
        picture.quantize(64).save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def photograph(page: Path, selector: str, width: int) -> Image.Image:
    """The part of a page, white around it."""
    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        copy.write_text(page.read_text().replace("</body>", SCRIPT.format(selector=selector)))
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}",
             f"--window-size={width},1600", "--virtual-time-budget=5000", f"--user-data-dir={folder}", str(copy)],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        return Image.open(shot).convert("RGB")


def trim(picture: Image.Image) -> Image.Image | None:
    """Without the white around it but for a margin; None where all is white."""
    box = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    return picture.crop((max(left - MARGIN, 0), max(top - MARGIN, 0), right + MARGIN, bottom + MARGIN))


if __name__ == "__main__":
    main()
