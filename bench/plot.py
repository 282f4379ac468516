"""The curves as one SVG file. Needs matplotlib (Debian's python3-matplotlib), which nothing else here does."""

from growth import BARE

COLOURS = ("#0b5fa5", "#c2571a", "#4c7a2f")


def draw(curves, path):
    """`curves`: (Curve, points) pairs; each of several points gets a panel with what audit_ext adds to the bare table, against x on a
    logarithmic scale."""
    import matplotlib

    matplotlib.use("svg")
    # Text as text: small, and in the reader's font.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "audit_ext", "font.size": 8})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    curves = [(curve, points) for curve, points in curves if len(points) > 1]
    columns = 3
    rows = -(-len(curves) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(10, 2.6 * rows), squeeze=False)
    for panel, (curve, points) in zip(panels.flat, curves):
        xs = [max(x, 1) for x, _ in points]
        for colour, series in zip(COLOURS, over_bare(points[0][1])):
            ys = [over_bare(values)[series] for _, values in points]
            panel.plot(xs, ys, marker="o", markersize=3, color=colour, label=series)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        panel.minorticks_off()
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]), top=max(panel.get_ylim()[1], 1) * 1.15)
        panel.set_title(curve.title, fontsize=8)
        panel.set_xlabel(curve.x)
        panel.set_ylabel(f"µs over bare, per {curve.unit}")
        if len(over_bare(points[0][1])) > 1:
            panel.legend(frameon=False)
    for panel in list(panels.flat)[len(curves):]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def over_bare(values):
    """Series' name to what it adds to the bare table's of the same group: `bulk audit_ext` less `bulk bare`."""
    found = {}
    for series, value in values.items():
        group, _, variant = series.rpartition(" ")
        if variant != BARE:
            name = " ".join(part for part in (group, variant if variant != "audit_ext" or not group else "") if part)
            found[name] = value - values[f"{group} {BARE}".strip()]
    return found
