"""Figures of forgetting and fusion, from plain arrays.

Every function returns a matplotlib `Figure` that no global state knows of: show
it in a notebook, save it, or turn it into text for a page with `to_svg`. One
meaning has one colour everywhere: blue is fusion, orange is what was forgotten
or memorised, green is what was learned or is right, grey is a reference. Where
several things are compared, each has a colour, a line and a marker of its own.
"""

from kfkd_jax import extras
from kfkd_jax.catalogue import method_name

with extras.named():
  from kfkd_jax.plots.comparison import (
    plot_against,
    plot_curves_compared,
    plot_methods_compared,
    plot_risk_coverage,
  )
  from kfkd_jax.plots.forgetting import (
    most_forgotten,
    plot_cartography,
    plot_class_forgetting,
    plot_curves,
    plot_forgotten_examples,
    plot_label_noise,
    plot_memorisation,
    plot_time_to_forget,
  )
  from kfkd_jax.plots.fusion import plot_gains, plot_weights
  from kfkd_jax.plots.style import (
    AMBER,
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    VIOLET,
    Look,
    css_color,
    look,
    save,
    short,
    to_svg,
  )
  from kfkd_jax.plots.theory import (
    plot_correctness,
    plot_descent,
    plot_filters,
    plot_fits,
    plot_forget_times,
    plot_over_time,
    plot_projection_history,
    plot_projections,
    plot_rounds,
  )

__all__ = [
  "AMBER",
  "BLUE",
  "GREEN",
  "GRID",
  "INK",
  "MUTED",
  "ORANGE",
  "PAPER",
  "VIOLET",
  "Look",
  "css_color",
  "look",
  "method_name",
  "most_forgotten",
  "plot_against",
  "plot_cartography",
  "plot_class_forgetting",
  "plot_correctness",
  "plot_curves",
  "plot_curves_compared",
  "plot_descent",
  "plot_filters",
  "plot_fits",
  "plot_forget_times",
  "plot_forgotten_examples",
  "plot_gains",
  "plot_label_noise",
  "plot_memorisation",
  "plot_methods_compared",
  "plot_over_time",
  "plot_projection_history",
  "plot_projections",
  "plot_risk_coverage",
  "plot_rounds",
  "plot_time_to_forget",
  "plot_weights",
  "save",
  "short",
  "to_svg",
]
