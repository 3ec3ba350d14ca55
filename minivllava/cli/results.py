"""Tables of results in the terminal."""


def print_results(results: dict):
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)  # a pipe counts as 80 columns, which would cut the names of types
    for split, rows in results["tables"].items():
        views = [key for key in rows[0] if key not in ("kind", "type", "n")]
        shown = Table(title=f"{split}: exact match, %", title_justify="left")
        for column in ("kind", "type", "n", *views):
            shown.add_column(column, justify="left" if column in ("kind", "type") else "right")
        for row in rows:
            scores = ("-" if row[view] is None else f"{100 * row[view]:.1f}" for view in views)
            shown.add_row(
                row["kind"], row["type"], str(row["n"]), *scores, style="bold" if row["type"] == "all" else ""
            )
        console.print(shown)
