"""Figures of matplotlib as pictures."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samcp.visualization.drawing import Picture


def figure_picture(figure: Figure) -> Picture:
    """Render a figure at its own resolution, (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
