"""The page about the latents of one flow: tables, maps and pictures in a directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from flowbench.evaluation.latents import Latents
from flowbench.evaluation.sampling import grid
from flowbench.report.document import Block, Heading, Paragraph, Picture, Table, html, markdown
from flowbench.report.figures import style
from flowbench.report.figures.style import BAR, heat, scale, shades
from flowbench.report.text import number

PAGE = "latents"
MAPS = {
    "mean": "Mean",
    "std": "Standard deviation",
    "skewness": "Skewness",
    "kurtosis": "Excess kurtosis",
    "ks": "Distance from normal",
    "correlation": "Correlation with others",
}
"""The columns of the table of patches that are drawn as maps, and their titles."""
ENLARGED = 3
CAPTIONS = {
    "blocks": "Test images, and what each block gives, from the data (left) to the noise (right), "
    "an image a row.",
    "classes": "Test images (left), and their noise decoded with every class instead of their own.",
    "interpolation": "From a test image (left) to another (right) on a sphere through their noise; "
    "the class changes in the middle.",
    "nearest": "The ten samples nearest to a training image (above), and these images (below).",
}


def write(found: Latents, title: str, directory: Path) -> Path:
    """Write the tables, pictures and page; return the path of the page.

    Args:
        found: What was found.
        title: Name of the flow.
        directory: Where to; it is made where it is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("probe", "gaussian", "nearest"):
        getattr(found, name).to_csv(directory / f"{name}.csv", index=False)
    pd.DataFrame(found.reach).to_csv(directory / "reach.csv", index_label="latent_patch")
    for name, images in found.images.items():
        picture = grid(images).repeat(ENLARGED, 0).repeat(ENLARGED, 1)
        Image.fromarray(picture.squeeze()).save(directory / f"{name}.png")
    style.save(_maps(found.gaussian), directory / "gaussian.png")
    style.save(_reach(found), directory / "reach.png")
    heading, blocks = f"Latents of {title}", list(_page(found))
    path = directory / f"{PAGE}.md"
    path.write_text(markdown(heading, blocks))
    path.with_suffix(".html").write_text(html(heading, blocks, lambda name: directory / name))
    return path


def _page(found: Latents) -> Iterator[Block]:
    test, train = (found.gaussian[found.gaussian["set"] == name] for name in ("test", "train"))
    farthest = test.loc[test["ks"].idxmax()]
    distances = found.nearest.groupby("set")["distance"].median()
    yield Paragraph(
        f"The noise of test images is farthest from a standard normal at row "
        f"{farthest['row'] + 1:.0f}, column {farthest['column'] + 1:.0f} of the patches. Samples "
        f"are {number(distances['samples'], 1)} grey levels from their nearest training image, "
        f"test images {number(distances['test'], 1)} (medians, root mean square per pixel)"
        + (
            ": samples are nearer, which memorised or blander images can cause."
            if distances["samples"] < distances["test"]
            else ": nothing says that training images were memorised."
        ),
        lead="In short.",
    )
    yield Heading("Block by block")
    yield Picture("blocks.png", "Images after every block", CAPTIONS["blocks"])
    if len(found.probe):
        rows = [
            ["image" if row.block == 0 else f"block {row.block}", number(row.accuracy)]
            for row in found.probe.itertuples()
        ]
        yield Paragraph(
            "Accuracy of a linear classifier of the class, fitted to training images and tried on "
            "test images. A flow with classes gets every image's label: for that reason alone the "
            "output of a block may show the class, or lack it."
        )
        yield Table(["after", "accuracy"], rows)
    yield Heading("How Gaussian the noise is")
    columns = [name for name in MAPS if name in test]
    rows = [
        [name, *(number(np.sqrt(np.square(own[column]).mean())) for column in columns)]
        for name, own in (("train", train), ("test", test))
    ]
    independent = 1 / np.sqrt((found.nearest["set"] == "test").sum())
    yield Paragraph(
        "Root mean square over the patches. A standard normal has a standard deviation of 1 and "
        f"otherwise 0, but with so many images a correlation of {number(independent)} by chance."
    )
    yield Table(["images", *(MAPS[name].lower() for name in columns)], rows)
    yield Picture(
        "gaussian.png",
        "Maps of the latents' moments",
        "Latents by patch of the image, training images above, test images below, each on one "
        "scale: distance from normal is that of Kolmogorov and Smirnov, correlation the root mean "
        "square with the latents of all other patches.",
    )
    yield Heading("What the latents do")
    yield Picture(
        "reach.png",
        "Change of the image by latent patch",
        "Change of the image where one patch of the noise is drawn anew. Every small square is the "
        "whole image, its place is that of the patch that was redrawn; root mean square over 8 "
        "test images.",
    )
    if "classes" in found.images:
        yield Picture("classes.png", "The same noise with every class", CAPTIONS["classes"])
    alt = "Interpolation through the noise"
    yield Picture("interpolation.png", alt, CAPTIONS["interpolation"])
    yield Heading("Nearest training images")
    yield Picture("nearest.png", "Samples and nearest training images", CAPTIONS["nearest"])


@style.context()
def _maps(table: pd.DataFrame) -> Figure:
    """Draw a map for every column, training images above and test images below."""
    figure = Figure(figsize=(style.PAGE, 3.2), layout="constrained")
    places = figure.add_gridspec(3, len(MAPS), height_ratios=[1.0, 1.0, BAR])
    for place, (name, title) in enumerate(MAPS.items()):
        maps = {
            side: own.pivot_table(name, "row", "column").to_numpy()
            for side, own in table.groupby("set", sort=False)
        }
        shared = shades(maps.values())
        for row, (side, values) in enumerate(maps.items()):
            axes = figure.add_subplot(places[row, place])
            heat(axes, values, shared)
            axes.set(xticks=[], yticks=[], title="" if row else title.replace(" ", "\n", 1))
            axes.set_ylabel("" if place else side)
        scale(figure, places[2, place], shared, "")
    return figure


@style.context()
def _reach(found: Latents) -> Figure:
    """Draw the change of the image for every latent patch, at the patch's own place."""
    test = found.gaussian[found.gaussian["set"] == "test"]
    rows, columns = int(test["row"].max()) + 1, int(test["column"].max()) + 1
    tiles = found.reach.reshape(rows, columns, rows, columns)
    framed = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    mosaic = framed.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))
    figure = Figure(figsize=(5.0, 5.5), layout="constrained")
    places = figure.add_gridspec(2, 1, height_ratios=[1.0, BAR / 5])
    axes = figure.add_subplot(places[0])
    shared = shades([mosaic])
    heat(axes, mosaic, shared)
    axes.set(xticks=[], yticks=[])
    scale(figure, places[1], shared, "Change of pixels on [−1, 1]")
    return figure
