"""Make an image smaller, strip by strip, with Pillow.

    p2pscoop run -n 4 docs/examples/image_resize.py photo.jpg small.png --factor 4

A strip is a task's argument, and goes there as the bytes of its pixels.
"""

from __future__ import annotations

import argparse

from PIL import Image

from p2pscoop import futures

Strip = tuple[bytes, tuple[int, int]]


def shrink(strip: Strip, factor: int) -> Strip:
    pixels, size = strip
    small = Image.frombytes("RGB", size, pixels).reduce(factor)
    return small.tobytes(), small.size


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an image smaller.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="of each strip, before")
    options = parser.parse_args()
    factor = options.factor
    height = options.rows - options.rows % factor or factor
    with Image.open(options.source) as opened:
        image = opened.convert("RGB")
    boxes = [(0, top, image.width, min(top + height, image.height)) for top in range(0, image.height, height)]
    strips = [image.crop(box) for box in boxes]
    small = futures.map(shrink, ((strip.tobytes(), strip.size) for strip in strips), [factor] * len(strips))
    result = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for number, (pixels, size) in enumerate(small):
        result.paste(Image.frombytes("RGB", size, pixels), (0, number * height // factor))
    result.save(options.target)
    print(f"{image.width} x {image.height} became {result.width} x {result.height}")


if __name__ == "__main__":
    main()
